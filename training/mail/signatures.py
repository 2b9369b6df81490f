"""What stands below an author's words and is not voice: signatures, footers, tails that a mailbox repeats.

A greeting, a closing ("Best regards,") and the name typed under it are voice and stay.
Functions take the lines and the numbers of own lines, and return how many own lines to keep.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from training.mail.archive import is_record_sheet
from training.mail.closings import is_closing
from training.mail.footers import ATTACHMENT_LINE, PHONE_FOOTER, footer_at
from training.mail.speech import is_said

# A share of mails that end in the same lines from which the lines count as a signature (voice.md §5).
REPEATED_TAIL_SHARE = 0.3
# Below three mails "repeated" means nothing.
MIN_REPEATS = 3
_MAX_TAIL_LINES = 10
# RFC 3676 §4.3 ends the body at "-- ", but people also type "--" between two parts of a text: more lines
# than this below it are a text.
_MAX_SIGNATURE_LINES = 15

_KEPT_SHORT = re.compile(
    # Initials ("H. B.", "M & H"), kisses, scores, emoticons.
    r"\s*(?:[A-Z]\. ?[A-Z]\.?(?: ?[A-Z]\.?)?|[A-Z] ?[&+] ?[A-Z]|(?:x ){1,4}x|\d{1,2}[:-]\d{1,2}[!.]?|"
    r"[-~]?\s?\w[.!]?|[:;=8xX][-o*'^]?[()DPp/|\]\[3*]+|[!?]+|<3+)\s*$"
)

_CONTACT = re.compile(
    r"(?:\d[\s().+/-]{0,3}){6,}|https?://|www\.|\S@\S|\b(?:tel|phone|fax|mobile|cell|mob|office|ext|suite|"
    r"off)\b[.: ]",
    re.I,
)


def count_kept(lines: Sequence[str], own: Sequence[int]) -> tuple[int, str]:
    """Return how many leading own lines are the author's words, and why the rest is not ("" when all are)."""
    kept, reason = len(own), ""
    for position, index in enumerate(own):
        line = lines[index].strip()
        if not line:
            continue
        # OpenPGP writes "- " before a line that begins with a dash.
        if line in ("--", "- --") and _lines_left(lines, own, position + 1) <= _MAX_SIGNATURE_LINES:
            kept, reason = position, "signature"
            break
        footer = "archive stamp" if is_record_sheet(line[:200]) else footer_at(lines, own, position, line)
        if footer:
            kept, reason = position, footer
            break
    while True:
        last = _last_text(lines, own, kept)
        if last is None:
            return 0, reason
        line = lines[own[last]].strip()
        if len(line) <= 160 and (PHONE_FOOTER.match(line) or ATTACHMENT_LINE.match(line)):
            reason = reason or "footer"
        elif _is_noise(line) or "Hex-Dump" in line:
            reason = reason or "noise"
        else:
            return last + 1, reason
        kept = last


def _lines_left(lines: Sequence[str], own: Sequence[int], position: int) -> int:
    left = 0
    for at in range(position, len(own)):
        left += bool(lines[own[at]].strip())
        if left > _MAX_SIGNATURE_LINES:
            break
    return left


def _last_text(lines: Sequence[str], own: Sequence[int], kept: int) -> int | None:
    for position in range(kept - 1, -1, -1):
        if lines[own[position]].strip():
            return position
    return None


def _is_noise(line: str) -> bool:
    """Tell whether a last line holds no word: rules, stray marks of scanned paper, "P6/(b)" stamps.

    An initial, an emoticon and "!!!" are the author's.
    """
    if len(line) > 200 or (not line.isascii() and any(ord(char) > 0x2000 for char in line)):
        return False
    if _KEPT_SHORT.match(line):
        return False
    return not any(len(run) > 1 for run in re.findall(r"\w+", line))


# ---- tails that a mailbox repeats ------------------------------------------------------------------

Tail = tuple[str, ...]


def tail_of(lines: Sequence[str], own: Sequence[int]) -> Tail:
    """Return the last own lines (at most ten, blank ones left out), spaces folded, in order."""
    tail: list[str] = []
    for index in reversed(own):
        line = lines[index]
        if line and not line.isspace():
            tail.append(" ".join(line.split())[:200])
            if len(tail) == _MAX_TAIL_LINES:
                break
    return tuple(reversed(tail))


def learn_tails(tails: Iterable[Tail]) -> frozenset[Tail]:
    """Return the endings that at least 30 % of a mailbox's mails share and that are signature, not voice.

    Closings and the name under them are cut off the front of each; a lone name is never a tail.
    """
    mails = [tail for tail in tails if tail]
    counts: Counter[Tail] = Counter()
    for tail in mails:
        for size in range(1, len(tail) + 1):
            counts[tail[-size:]] += 1
    needed = max(MIN_REPEATS, REPEATED_TAIL_SHARE * len(mails))
    learnt: set[Tail] = set()
    for tail, count in counts.items():
        if count >= needed and (signature := _without_voice(tail)):
            learnt.add(signature)
    return frozenset(learnt)


def _without_voice(tail: Tail) -> Tail:
    start = 0
    for position, line in enumerate(tail):
        # "Let me know if you have any questions." is said, however often.
        if is_closing(line) or (position == start and is_said(line)):
            start = position + 1
            if start < len(tail) and _is_typed_name(tail[start]):
                start += 1
    rest = tail[start:]
    if start == 0 and len(rest) > 1 and _is_typed_name(rest[0]) and not any(map(_CONTACT.search, rest)):
        rest = rest[1:]
    if len(rest) == 1 and not _CONTACT.search(rest[0]) and len(rest[0].split()) <= 4:
        return ()
    return rest


def _is_typed_name(line: str) -> bool:
    return len(line.split()) <= 3 and not any(map(str.isdigit, line)) and not _CONTACT.search(line)


def count_before_tail(lines: Sequence[str], own: Sequence[int], tails: frozenset[Tail]) -> int:
    """Return how many leading own lines stand before the longest learnt tail that the mail ends with."""
    if not tails:
        return len(own)
    ending = tail_of(lines, own)
    for size in range(len(ending), 0, -1):
        if ending[-size:] in tails:
            left = size
            for position in range(len(own) - 1, -1, -1):
                if lines[own[position]].strip():
                    left -= 1
                    if left == 0:
                        return _after_typed_name(lines, own, position)
    return len(own)


def _after_typed_name(lines: Sequence[str], own: Sequence[int], start: int) -> int:
    """Move the start of a tail below a name that stands directly under a closing: that name was typed."""
    above = _last_text(lines, own, start)
    if above is not None and is_closing(lines[own[above]]) and _is_typed_name(lines[own[start]].strip()):
        return start + 1
    return start
