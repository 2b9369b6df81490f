"""Where text that somebody else wrote begins although no client marked it.

People paste articles, press releases, transcripts, passages of documents and whole mails under a line of
their own. Nothing stands in front of every line, so the evidence is in the text: labels and bylines of the
press, speakers of a transcript, reported speech without a single "I" or "you", a salutation to the author,
a rule under the signature, prose that is set in like a page of the web. What the author announces is found by
`training/mail/introduced.py`.

Calibrated on the eleven mailboxes beside the repository by reading every hit (tests/labels/README.md). What
is found is cut from its first line to the end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from training.mail.closings import is_closing
from training.mail.owner import owner_names
from training.mail.paragraphs import Run, runs_of
from training.mail.speech import PERSON, person_share, speaks

MIN_WORDS = 60
"""A shorter text only mentions the press; an article that anybody pastes is longer."""
# Reported speech alone: this many "said", and fewer first and second persons than one in 300 words outside of
# quotation marks. A summary of a meeting has the former, no letter has the latter.
_MIN_SAID = 6
_IMPERSONAL = 1 / 300
# Beside a byline or a dateline less is enough.
_MOSTLY_IMPERSONAL = 1 / 100
# Columns further in than the leftmost own line: people set lists in by 4 or 8, pasted pages by 16 and more.
_SET_IN_COLUMNS = 12
_MIN_SET_IN_LINES = 8
# A rule below the author's own name is typed in one go; below that many words stands an afterthought.
_MIN_BELOW_RULE_WORDS = 15
# A name with a comma at the very end of a mail is a signature.
_MIN_LETTER_WORDS = 5
# Nothing further down changes the verdict, only the time.
_MAX_CHARS = 20_000

_SAID = re.compile(r"\b(?:said|says|told|according to)\b")
_LABELLED = re.compile(
    r"^[ \t]*(?:BYLINE|HEADLINE|DATELINE|LOAD-DATE|SECTION:.{0,80}(?:EDITION|PAGE)|LENGTH: \d+ words|"
    r"LANGUAGE: [A-Z]+[ \t]*$|(?i:embargoed (?:until|for))\b[^.?!\n]{0,35}$)",
    re.M,
)
_PUBLISHED = re.compile(
    r"\b(?:Staff Writers?|Staff Reporters?|Associated Press Writer|PRNewswire|BUSINESS ?WIRE|"
    r"[Cc]opyright (?:\([cC]\) ?|©\s?)?(?:19|20)\d\d|[Aa]ll rights reserved|Reprint rights)\b"
    r"|©\s?(?:19|20)\d\d"
    r"|(?i:for immediate release)\b"
    r"|\((?:AP|UPI|AFP|dpa|Reuters|Bloomberg|Dow Jones)\)|\bAPNP-\d\d-\d\d"
)
# No match of `_PUBLISHED` without one of these; looked for first because that takes a tenth of the time.
_PUBLISHED_HINTS = (
    "Staff ", "Press Writer", "PRNews", "WIRE", "opyright", "ights", "©", "elease", "ELEASE", "(AP", "(UPI",
    "(AFP", "(dpa", "(Reuters", "(Bloomberg", "(Dow", "APNP",
)  # fmt: skip
_BYLINE = re.compile(r"^[ \t]*(?i:by):? [A-Z][\w.'’-]+(?: [A-Z][\w.'’-]+){1,3}(?:,.{0,60})?[ \t]*$", re.M)
_MASTHEAD = re.compile(
    r"^[^\n.?!]{0,60}\b(?i:times|post|journal|globe|herald|tribune|newswire|gazette|chronicle|spectator|"
    r"u\.s\. news|newsweek|time magazine|press release|news service)\b"
    r"[^\n?!]{0,60}(?:\n[^\n?!]{0,20})?\b(?:19|20)\d\d[ \t]*$"
    r"|^[ \t]*THE (?:NEW YORK TIMES|WALL STREET JOURNAL|WASHINGTON POST)\b",
    re.M,
)
# "SACRAMENTO -- With …", "WASHINGTON, Jan. 29 /PRNewswire/ -- …"
_DATELINE = re.compile(
    r"^[ \t]*(?!FYI|NOTE|PS|URGENT|ACTION)[A-Z][A-Z.' ]{3,24}(?:, [A-Z][\w. ]{1,20})?[ \t]{0,3}"
    r"(?:--|—|–|-|/) ?(?=[A-Z\"“`])",
    re.M,
)
_SPEAKER = re.compile(
    r"^[ \t]*(?:(?:MR|MRS|MS|DR|SEN|SENATOR|REP|GOV|SECRETARY|CHAIRMAN|DIRECTOR)\.? [A-Z][A-Z .'-]{1,24}|"
    r"THE (?:VICE )?PRESIDENT|MODERATOR): ",
    re.M,
)
_QUESTION = re.compile(r"^[ \t]*Q[.:]?[ \t]{2,}\S", re.M)
_POSTSCRIPT = re.compile(r"p\.? ?s\b|nb\b|n\.b\.", re.I)
_RULES = tuple(mark * 20 for mark in "-_=*~+#")
_RULE_LINE = re.compile(r"[ \t]*([-_=*~+#])\1{19,}[ \t]*$")
_PRESS_SUBJECT = re.compile(
    r"\b(?:(?:press|news) release|op-?ed|editorial|transcript|pressemitteilung|communiqué de presse|"
    r"comunicato stampa|(?:nota|comunicado) de prensa|persbericht)\b",
    re.I,
)
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")


def find_pasted(
    lines: Sequence[str], own: Sequence[int], *, subject: str = "", sender: str = ""
) -> int | None:
    """Return how many leading own lines stand above text that somebody else wrote; None when none is found.

    Linear in the text; looks at the first 20,000 characters. `sender` is the author's name or address.
    """
    named = _salutation_to_author(lines, own, sender)
    text = "\n".join([lines[index] for index in own])[:_MAX_CHARS]
    if len(text) < 4 * MIN_WORDS or len(text.split()) < MIN_WORDS:
        turns = _turns(text) if ": " in text else []
        return named if not turns else text.count("\n", 0, turns[0])
    paragraphs = runs_of(lines, own)
    cue = _first_cue(text, 1 if _PRESS_SUBJECT.search(subject[:200]) else _MIN_SAID)
    starts = [named]
    if cue is not None:
        cue_line = text.count("\n", 0, cue)
        starts.append(_after_own_paragraphs(lines, own, paragraphs, cue_line, owner_names(sender)))
    if any(rule in text for rule in _RULES):
        starts.append(_below_signature(lines, own))
    if "\t" in text or " " * _SET_IN_COLUMNS in text:
        starts.append(_set_in(lines, own, paragraphs))
    return min((start for start in starts if start is not None), default=None)


def _first_cue(text: str, min_said: int) -> int | None:
    """Return where the first sign of a published or recorded text stands; None when there is none.

    `min_said` reports of speech are enough without a label of the press.
    """
    patterns = (_LABELLED, _PUBLISHED) if any(hint in text for hint in _PUBLISHED_HINTS) else (_LABELLED,)
    cues = [found.start() for pattern in patterns if (found := pattern.search(text))]
    cues += _turns(text)[:1]
    said = len(_SAID.findall(text))
    if not said:
        return min(cues, default=None)
    weak = [found.start() for pattern in (_BYLINE, _MASTHEAD, _DATELINE) if (found := pattern.search(text))]
    if (on_top := _MASTHEAD.match(text.lstrip())) and "\n" in on_top.group():
        cues.append(0)  # a name and, on a line of its own, a date: nothing of the author's stands above
    if weak and person_share(text[min(weak) :]) < (_MOSTLY_IMPERSONAL if len(weak) > 1 else _IMPERSONAL):
        cues.append(min(weak))
    if not cues and said >= min_said:
        start = 0
        for paragraph in _BLANK_LINES.split(text):
            if not speaks(paragraph):
                break
            start = text.index(paragraph, start) + len(paragraph)
        below = text[start:]
        if len(_SAID.findall(below)) >= min_said and person_share(below) < _IMPERSONAL:
            cues.append(len(text))
    return min(cues, default=None)


def _turns(text: str) -> list[int]:
    """Return where the speakers of a transcript and the questions to them stand; [] for fewer than two."""
    speakers = [found.start() for found in _SPEAKER.finditer(text)]
    turns = sorted(speakers + [found.start() for found in _QUESTION.finditer(text)]) if speakers else []
    return turns if len(turns) >= 2 else []


def _after_own_paragraphs(
    lines: Sequence[str],
    own: Sequence[int],
    paragraphs: Sequence[Run],
    cue: int,
    owners: frozenset[str],
) -> int:
    """Return the position after the leading paragraphs that speak to somebody and end above the cue."""
    for start, end in paragraphs:
        if end > cue:
            if not speaks(" ".join(lines[own[position]] for position in range(start, cue))):
                return start
            while cue > start and _is_headline(lines[own[cue - 1]].strip()):
                cue -= 1
            return cue
        text = " ".join(lines[own[position]] for position in range(start, end))
        signed = is_closing(lines[own[start]]) or len(text) <= 4 or text.strip(" -,.").lower() in owners
        if not (speaks(text) or (signed and start > paragraphs[0][0])):
            return start
    return paragraphs[0][0] if paragraphs else 0


def _is_headline(line: str) -> bool:
    return len(line.split()) >= 3 and line[-1] not in ".,:;!?" and not PERSON.search(line)


def _below_signature(lines: Sequence[str], own: Sequence[int]) -> int | None:
    """Find a long rule directly below a closing and a name: what the author puts there was at hand."""
    for position, index in enumerate(own):
        if not _RULE_LINE.match(lines[index]):
            continue
        above = [lines[at].strip() for at in own[max(0, position - 6) : position] if lines[at].strip()][-2:]
        named = len(above) == 2 and is_closing(above[0]) and len(above[1].split()) <= 3
        if named or (above and is_closing(above[-1])):
            below = [lines[at].strip() for at in own[position + 1 :] if lines[at].strip()]
            enough = sum(len(line.split()) for line in below) >= _MIN_BELOW_RULE_WORDS
            return position if enough and not _POSTSCRIPT.match(below[0]) else None
    return None


def _set_in(lines: Sequence[str], own: Sequence[int], paragraphs: Sequence[Run]) -> int | None:
    """Find prose that is set in deeply below own lines, as web pages and wires are when they are pasted.

    A list is set in too, but its lines do not run on; what the author sets in speaks to somebody.
    """
    text = [position for start, end in paragraphs for position in range(start, end)]
    margins = [len(line) - len(line.lstrip()) for line in (lines[own[at]].expandtabs(8) for at in text)]
    limit = min(margins, default=0) + _SET_IN_COLUMNS
    deep_left = sum(margin >= limit for margin in margins)
    lines_left = len(margins)
    at = 0
    for start, end in paragraphs:
        deep = sum(margin >= limit for margin in margins[at : at + end - start])
        if deep_left < _MIN_SET_IN_LINES:
            return None
        if at and deep and 2 * deep_left >= lines_left:
            block = [lines[own[position]].strip() for position in text[at:]]
            runs_on = sum(
                below[0].islower() and above[-1] not in ".:;" for above, below in pairwise(block)
            ) / len(block)
            return start if runs_on >= 0.5 and person_share(" ".join(block)) < _MOSTLY_IMPERSONAL else None
        at += end - start
        deep_left -= deep
        lines_left -= end - start
    return None


def _salutation_to_author(lines: Sequence[str], own: Sequence[int], sender: str) -> int | None:
    """Find "Drew," on a line of its own below own words of Drew's: from here on somebody writes to him."""
    if not sender:
        return None
    names: frozenset[str] | None = None
    for position, index in enumerate(own):
        line = lines[index]
        if not 2 < len(line) < 40 or line.rstrip()[-1:] not in _SALUTATION_ENDS:
            continue
        names = names or owner_names(sender)
        words = line.strip(_SALUTATION_MARKS).lower().split()
        if 1 <= len(words) <= 3 and words[-1] in names and _opens_mail(words, names):
            above = any(lines[at].strip() for at in own[:position])
            below = sum(len(lines[at].split()) for at in own[position + 1 :])
            if above and below >= _MIN_LETTER_WORDS:
                return position
    return None


_SALUTATION_MARKS = ",:-–! \t"
_SALUTATION_ENDS = frozenset(",:-–!")


def _opens_mail(words: Sequence[str], names: frozenset[str]) -> bool:
    return all(
        word in names or word in ("hi", "hello", "hey", "dear", "hallo", "lieber", "liebe") for word in words
    )
