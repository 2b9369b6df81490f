"""What an archive printed on a mail, and what its scanner left between the words.

Record sheets and page stamps, the codes of blacked-out passages ("P6/(b)(6)"), the bar above an attachment
read as a row of semicolons, specks of dirt. Seen in the White House mail beside the repository; none of it is
anybody's word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from training.mail.owner import initials_of

# The record sheet of the next mail, to the end of the text. Scanners put marks before the labels and into
# them ("RECORD TYP,E", "RECORO TYPE").
_RECORD_SHEET = re.compile(
    r".{0,12}REC[O0]R[DO]\W{1,4}[T~]?\W?[YV]\W?P\W?E\W.{0,6}(?:PRES[I1][DO]ENTIAL|FEDERAL)"
    r"|\W{0,3}TYPE:\s{1,3}(?:PRES[I1][DO]ENTIAL|FEDERAL)\b"
    r"|.{0,40}PRES[I1][DO]ENTIAL\s{1,9}\(NOTES MAIL\)|CREATOR:\s|CREATION DATE/TIME:"
    r"|EMAILS RECEIVED$|ARMS - BOX \d|.{0,20}Hex-?\s?\w{2,7} Con\w{4,9}\b"
)
# Its stamps in the middle: the text goes on after the page break.
_PAGE_STAMP = re.compile(
    r"\W{0,12}(?:\w{0,3}\W{1,4})?(?:A.?MS|Automated Records)\s{1,9}(?:E.?mail|Management) System\b.{0,160}$"
    r"|[^\w\n]{0,90}Page [\dIlO]{1,3} ?of ?[\dIlO]{1,3}$"
    r"|\W{0,12}\w{1,2}\s{20,160}Page [\dIlO]{1,3} ?of ?[\dIlO]{1,3}$|Clinton Library Photocopy$"
    r"|Message Creation Date was at\s.{0,40}$|DETERMINED TO BE AN$|ADMINISTRATIVE MARKING$|RECORD\W{2,4}$"
)
_PAGE_HINTS = ("Page ", "Syst", "Message Creation", "Photocopy", "MARKING", "RECORD")
# The code of a blacked-out passage, with the bars of its box and what the scanner made of both.
_REDACTION = re.compile(
    r"(?:(?<=\s)[I|1l\[#]\s{2,12}|\S{0,4}[^\w\s]{1,6})?"
    r"(?:P[_~]?[56](?=[\W_1fl])|PS/(?=\(b))\S{0,28}(?: b)?(?: 6)?(?!\w)(?:\s{1,12}[I|lf1i][.·]{0,2}(?=\s|$))?"
)
_REDACTION_HINTS = ("P6", "P_6", "P~6", "P5/(", "PS/(b")
# What stands beside one at the right margin: a mark by hand, read as "[ooz]" or "[()\\){j", and broken boxes.
_MARGIN = re.compile(r"(?<!\s)\s{3,}+(?:\S{0,4}[\[\]][^\n]{0,10}|[^\s\w]\S{0,6}|\S{0,12}?[_~]{2,}+\S{0,12})$")
# What the scanner made of the rest of "==== ATTACHMENT 1 ====" at the end of a line.
_AFTER_BAR = re.compile(r"(?:ATT.{0,20}|\b\w)$")
_BAR_MARKS = ";=~ "
_MIN_BAR = 4

_NO_WORD = re.compile(r"[\W_]+$")
# What people type without a letter: rules, faces, "!!!", dots.
_TYPED = re.compile(
    r"([^\w\s]|_)(?:\s?\1){2,}$|[-–—=*]{1,2}$|…$|[:;=][-o*'^]?[()DPp/|\]\[3*]+$|[!?]+$|<3+$|[xX8][D)]$|(?:[^\W\d_]\.){2,4}\W{0,3}$"
)
_MAX_SPECK = 40
# Columns to the right of which nobody types a line of a few characters.
_FAR_RIGHT = 30
_ALNUM_RUN = re.compile(r"[^\W_]+")
_AMOUNT = re.compile(r"[\d\s.,:/$€£%()+=*-]+$")
_SINGLE = re.compile(r"[^\W_][.,-]?$|[\"'`,.·]\s{0,9}\d{1,2}$")
_LOWER_RUN = re.compile(r"[a-zà-ÿ]{3}")
_GARBLED = re.compile(r"[{}~\\^|§]")
# Blank lines that a page break leaves.
_PAGE_BREAK = 4
# Blank lines above text that is left of an answered mail whose header and marks are gone.
_REMAINS_GAP = 3
# A single digit at the end of a shorter text is more likely an answer than dirt.
_MIN_TEXTS_ABOVE = 3

# Text that only such an archive prints: one mail of a hundred with it makes the mailbox a scanned one.
_ARCHIVED = (
    "ARMS Email",
    "Automated Records",
    "PRESIDENTIAL",
    "Hex-Dump",
    "Library Photocopy",
    "/(b)(6)",
    "Record Type:",
)
_SCANNED_SHARE = 0.01
_MIN_SCANNED = 3

Columns = list[tuple[int, int]]


def is_scanned(text: str) -> bool:
    """Tell whether a body went through an archive's scanner."""
    return any(mark in text for mark in _ARCHIVED)


def is_scanned_mailbox(bodies: Sequence[str]) -> bool:
    """Tell whether the mails of a mailbox did; a mail alone often shows nothing of it but its dirt."""
    return sum(map(is_scanned, bodies)) >= max(_MIN_SCANNED, _SCANNED_SHARE * len(bodies))


def is_record_sheet(line: str) -> bool:
    """Tell whether a line begins the record sheet of another mail, which runs to the end of the text."""
    return _RECORD_SHEET.match(line) is not None


def find_stamps(text: str, lines: Sequence[str], own: Sequence[int]) -> set[int]:
    """Return the numbers of own lines that an archive stamped on a page break of `text`."""
    if not any(hint in text for hint in _PAGE_HINTS):
        return set()
    return {index for index in own if lines[index] and _PAGE_STAMP.match(lines[index].strip()[:200])}


def find_dirt(
    text: str, lines: Sequence[str], own: Sequence[int], sender: str
) -> tuple[set[int], dict[int, Columns]]:
    """Find what is nobody's word among the own lines of a scanned mail.

    Returns the numbers of whole lines, and for lines that are partly somebody's the (start, end) columns of
    what is nobody's. Linear in the text.
    """
    whole: set[int] = set()
    parts: dict[int, Columns] = {}
    redacted = any(hint in text for hint in _REDACTION_HINTS)
    for index in own:
        found = _parts(lines[index][:500], redacted)
        if found and not any(map(str.isalnum, _without(lines[index], found))):
            whole.add(index)
        elif found:
            parts[index] = found
    whole |= _specks(lines, [index for index in own if index not in whole], sender, redacted)
    return whole, {index: found for index, found in parts.items() if index not in whole}


def count_without_remains(lines: Sequence[str], own: Sequence[int]) -> int:
    """Return how many of the own lines of a scanned mail stand above what is left of an answered one.

    Without its header and its marks that still stands behind three blank lines or more and begins with one
    space, below text that begins at the margin. In the ten mailboxes of tests/labels such a line is somebody
    else's in 105 mails and the author's in one. Linear in the text.
    """
    blanks, below_text = 0, False
    for at, index in enumerate(own):
        line = lines[index]
        if not line or line.isspace():
            blanks += 1
        elif line[0].isspace():
            begins = below_text and blanks >= _REMAINS_GAP and line[0] == " " and not line[1].isspace()
            return at if begins else len(own)  # below text that is set in a space says nothing
        else:
            blanks, below_text = 0, True
    return len(own)


def _without(line: str, columns: Columns) -> str:
    for start, end in reversed(columns):
        line = line[:start] + line[end:]
    return line


def _parts(line: str, redacted: bool) -> Columns:
    """Return the columns of redaction codes, margin marks and attachment bars, in order."""
    columns = [found.span() for found in _REDACTION.finditer(line)] if redacted else []
    end = columns[-1][1] if columns else 0
    start = _bar_start(line)
    # A line that is nothing but a bar is the attachment's or a rule of the author's.
    if start is not None and start >= end and line[:start].strip():
        columns.append((start, len(line)))
    elif redacted and (margin := _MARGIN.search(line, end)) and line[: margin.start()].strip():
        columns.append(margin.span())
    return columns


def _bar_start(line: str) -> int | None:
    """Return where the bar at the end of a line begins, None when there is none."""
    text = line.rstrip()
    after = _AFTER_BAR.search(text, max(0, len(text) - 24))
    if after:
        text = text[: after.start()].rstrip()
    kept = text.rstrip(_BAR_MARKS)
    bar = text[len(kept) :]
    if sum(mark in "=~" for mark in bar) >= _MIN_BAR or bar.count(";") > _MIN_BAR:
        return len(kept)
    return None


def _specks(lines: Sequence[str], own: Sequence[int], sender: str, redacted: bool) -> set[int]:
    """Return the own lines that hold dirt: no word, marks with a letter or two between them, or a single
    character where nobody would type one."""
    found: set[int] = set()
    texts = [index for index in own if lines[index] and not lines[index].isspace()]
    for at, index in enumerate(texts):
        line = lines[index]
        stripped = line.strip()
        if _NO_WORD.match(stripped):
            if not _TYPED.match(stripped):
                found.add(index)
        elif len(stripped) <= _MAX_SPECK or redacted:
            above = texts[at - 1] if at else None
            below = texts[at + 1] if at + 1 < len(texts) else None
            if _is_dirt(line, stripped, redacted) or (
                _SINGLE.match(stripped) and _is_stray(lines, above, index, below, sender, at)
            ):
                found.add(index)
    return found


def _is_dirt(line: str, stripped: str, redacted: bool) -> bool:
    """Tell whether a line holds more marks than letters and no word, or stands where nobody types."""
    if _TYPED.match(stripped) or is_record_sheet(stripped):
        return False
    runs = _ALNUM_RUN.findall(stripped)
    longest, letters = max(map(len, runs)), sum(map(len, runs))
    marks = len(stripped) - letters - stripped.count(" ")
    if len(line) - len(line.lstrip()) >= _FAR_RIGHT and len(stripped) <= _MAX_SPECK:
        return len(stripped) <= 3 or (longest <= 4 and marks > 0 and not _AMOUNT.match(stripped))
    if longest <= 2:
        return marks >= 3 and marks > (letters if marks >= 5 else 2 * letters) and not _AMOUNT.match(stripped)
    return (
        redacted
        and _GARBLED.search(stripped) is not None
        and not _LOWER_RUN.search(stripped)
        and sum(len(word) >= 4 and word.isalpha() for word in stripped.split()) < 2
    )


def _is_stray(
    lines: Sequence[str], above: int | None, index: int, below: int | None, sender: str, at: int
) -> bool:
    """Tell whether a line of one character is dirt: it breaks a sentence, or ends a text of somebody who
    signs with another letter."""
    stripped = lines[index].strip()
    letter = next(filter(str.isalnum, stripped))
    if below is None:
        if letter.isdigit():
            return at >= _MIN_TEXTS_ABOVE and not stripped.endswith((".", ","))
        return above is not None and bool(sender) and letter.lower() not in initials_of(sender)
    if above is None:
        return False
    if below > index + 1 and (above < index - 1 or below >= index + _PAGE_BREAK):
        return stripped.isalnum()
    return lines[above].rstrip()[-1] not in ".?!:;,)" and lines[below].lstrip()[0].islower()
