"""Where text that somebody else wrote begins although no client marked it.

People paste articles, press releases, transcripts, passages of documents and whole mails under a line of
their own. Nothing stands in front of every line, so the evidence is in the text: labels and bylines of the
press, speakers of a transcript, reported speech without a single "I" or "you", a salutation to the author,
the author's own announcement, a rule under the signature, prose that is set in like a page of the web.

Calibrated on the eleven mailboxes beside the repository by reading every hit (tests/labels/README.md). What
is found is cut from its first line to the end.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from training.mail.signatures import is_closing

MIN_WORDS = 60
"""A shorter text only mentions the press; an article that anybody pastes is longer."""
# Reported speech alone: this many "said", and fewer first and second persons than one in 300 words outside of
# quotation marks. A summary of a meeting has the former, no letter has the latter.
_MIN_SAID = 6
_IMPERSONAL = 1 / 300
# Beside a byline or a dateline less is enough.
_MOSTLY_IMPERSONAL = 1 / 100
# A passage under "here is the language": shorter ones are lists and dates of the author's.
_MIN_PASSAGE_WORDS = 120
# Below "here is the text of …": fewer words are a line that the author quotes while writing.
_MIN_ANNOUNCED_WORDS = 40
# Columns further in than the leftmost own line: people set lists in by 4 or 8, pasted pages by 16 and more.
_SET_IN_COLUMNS = 12
_MIN_SET_IN_LINES = 8
# A rule below the author's own name is typed in one go; below that many words stands an afterthought.
_MIN_BELOW_RULE_WORDS = 15
# A name with a comma at the very end of a mail is a signature.
_MIN_LETTER_WORDS = 5
# A lone name below that many words is a signature even without a closing above it.
_SIGNED_WORDS = 150
# Nothing further down changes the verdict, only the time.
_MAX_CHARS = 20_000

_PERSON = re.compile(
    r"\b(?:I|I['’](?:m|ll|ve|d)|we|we['’](?:re|ll|ve|d)|you|your|my|our|me|us|let['’]?s|pls|please|thanks|thx|fyi)\b",
    re.I,
)
# Documents say "we believe"; only a letter says "I" and "you".
_SPEAKER_OR_READER = re.compile(r"\b(?:I|I['’](?:m|ll|ve|d)|you|your|my|me|let['’]s|pls|thanks|fyi)\b", re.I)
_SAID = re.compile(r"\b(?:said|says|told|according to)\b")
_SPEECH = re.compile(r"\"[^\"]{0,800}\"|``[^`']{0,800}''|“[^”]{0,800}”")
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
_INTRODUCES = re.compile(
    r"\b(?:here(?:['’]?s| is| are)|below|follow(?:s|ing)|(?:full |the )?text of|language|excerpts?|pasted|"
    r"from (?:today|yesterday)['’]s|hier ist|hier sind|unten|voici|ci-dessous|aquí|abajo|ecco|hieronder|"
    r"abaixo)\b",
    re.I,
)
# What the author says to be somebody's text: first persons in it are not the author's. (`_AUTHOR` excepts
# "here is the text of my speech".)
_ANNOUNCES = re.compile(
    r"\b(?:here(?:['’]s| is| are)|(?:below|following|this) is|hier (?:ist|kommt)|unten steht|voici|ecco|"
    r"aqu[ií] está) (?:the |der |den |le |il |el )?"
    r"(?:(?:full|entire|complete|exact|ganze|volle|vollständige) )?"
    r"(?:text|wortlaut|texte|testo|texto) (?:of|from|der|des|de|du|della?) (?P<what>[^.?!:]{3,160})"
    r"|\bthe (?:full |entire |complete |exact )?text of (?P<which>[^.?!:]{3,80}?) "
    r"(?:follows\b|is (?:as )?(?:below|follows))"
    r"|\b(?:below|following|here) is (?:a|an|the) "
    r"(?:memo|message|e-?mail|note|letter|article|story|notice) from (?!me\b|us\b|my\b|our\b)"
    r"|\bsee (?:the )?excerpts? (?:below|that follows)\b"
    r"|['’]s? (?:\w+ )?(?:article|story|op-?ed|column|editorial)\b[^?!]{0,40}\bhere it is\b",
    re.I,
)
# The same for `_ANNOUNCES`.
_ANNOUNCE_HINTS = (
    "text of ", "text from ", "Wortlaut ", "Text ", "texte d", "testo d", "texto d", "xcerpt", "here it is",
    "memo from ", "ssage from ", "mail from ", "note from ", "etter from ", "rticle from ", "tory from ",
    "otice from ",
)  # fmt: skip
_POINTS_DOWN = (" below", " follows", " unten", " ci-dessous", " abajo", " hieronder", " abaixo")
_CLOSING_MARKS = " .!)]-–—"
_AUTHOR = re.compile(r"\b(?:I|I['’]\w+|my|our|we|we['’]\w+|mein\w*|unser\w*|ich|wir|mon|mi|il mio)\b", re.I)
_EXCERPT = re.compile(r"[ \t]*excerpts? (?:from|of) ", re.I)
_POSTSCRIPT = re.compile(r"p\.? ?s\b|nb\b|n\.b\.", re.I)
_RULES = tuple(mark * 20 for mark in "-_=*~+#")
_RULE_LINE = re.compile(r"[ \t]*([-_=*~+#])\1{19,}[ \t]*$")
_PRESS_SUBJECT = re.compile(
    r"\b(?:(?:press|news) release|op-?ed|editorial|transcript|pressemitteilung|communiqué de presse|"
    r"comunicato stampa|(?:nota|comunicado) de prensa|persbericht)\b",
    re.I,
)
_SIGNED_NAME = re.compile(r"[-~–—]?\s?[A-Z][a-zà-ÿ][\w'’.-]*(?: [A-Z][\w'’.-]*){0,2}[.,!]?$")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
_HEADING = re.compile(r"[A-Z0-9][^.?!:]{5,90}$")


def find_pasted(
    lines: Sequence[str], own: Sequence[int], *, subject: str = "", sender: str = ""
) -> int | None:
    """Return how many leading own lines stand above text that somebody else wrote; None when none is found.

    Linear in the text; looks at the first 20,000 characters. `sender` is the author's name or address.
    """
    named = _salutation_to_author(lines, own, sender)
    text = "\n".join([lines[index] for index in own])[:_MAX_CHARS]
    if len(text) < 4 * MIN_WORDS or len(text.split()) < MIN_WORDS:
        return named
    paragraphs = _paragraphs(lines, own)
    cue = _first_cue(text, 1 if _PRESS_SUBJECT.search(subject[:200]) else _MIN_SAID)
    found: int | None
    if cue is not None:
        found = _after_own_paragraphs(lines, own, paragraphs, text.count("\n", 0, cue), owner_names(sender))
    else:
        found = _introduced_passage(lines, own, paragraphs, subject)
    starts = [named, found]
    if any(hint in text for hint in _ANNOUNCE_HINTS):
        starts.append(_announced(lines, own, paragraphs))
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
    speakers = [found.start() for found in _SPEAKER.finditer(text)]
    if speakers:
        turns = sorted(speakers + [found.start() for found in _QUESTION.finditer(text)])
        if len(turns) >= 2:
            cues.append(turns[0])
    said = len(_SAID.findall(text))
    if not said:
        return min(cues, default=None)
    weak = [found.start() for pattern in (_BYLINE, _MASTHEAD, _DATELINE) if (found := pattern.search(text))]
    if weak and _person_share(text[min(weak) :]) < (_MOSTLY_IMPERSONAL if len(weak) > 1 else _IMPERSONAL):
        cues.append(min(weak))
    if not cues and said >= min_said:
        start = 0
        for paragraph in _BLANK_LINES.split(text):
            if not _speaks(paragraph):
                break
            start = text.index(paragraph, start) + len(paragraph)
        below = text[start:]
        if len(_SAID.findall(below)) >= min_said and _person_share(below) < _IMPERSONAL:
            cues.append(len(text))
    return min(cues, default=None)


def _person_share(text: str) -> float:
    """Return first and second persons outside of quotation marks, as a share of all words."""
    return len(_PERSON.findall(_SPEECH.sub(" ", text))) / max(1, len(text.split()))


def _paragraphs(lines: Sequence[str], own: Sequence[int]) -> list[tuple[int, int]]:
    """Return (first, after the last) position in `own` of every run of lines that hold something."""
    runs: list[tuple[int, int]] = []
    start: int | None = None
    for position, index in enumerate(own):
        blank = not lines[index] or lines[index].isspace()
        if start is not None and (blank or index != own[position - 1] + 1):
            runs.append((start, position))
            start = None
        if not blank and start is None:
            start = position
    if start is not None:
        runs.append((start, len(own)))
    return runs


def _after_own_paragraphs(
    lines: Sequence[str],
    own: Sequence[int],
    paragraphs: Sequence[tuple[int, int]],
    cue: int,
    owners: frozenset[str],
) -> int:
    """Return the position after the leading paragraphs that speak to somebody and end above the cue."""
    for start, end in paragraphs:
        if end > cue:
            if not _speaks(" ".join(lines[own[position]] for position in range(start, cue))):
                return start
            while cue > start and _is_headline(lines[own[cue - 1]].strip()):
                cue -= 1
            return cue
        text = " ".join(lines[own[position]] for position in range(start, end))
        signed = is_closing(lines[own[start]]) or len(text) <= 4 or text.strip(" -,.").lower() in owners
        if not (_speaks(text) or (signed and start > paragraphs[0][0])):
            return start
    return paragraphs[0][0] if paragraphs else 0


def _is_headline(line: str) -> bool:
    return len(line.split()) >= 3 and line[-1] not in ".,:;!?" and not _PERSON.search(line)


def _speaks(paragraph: str) -> bool:
    """Tell whether a paragraph is said to a reader: a person, a salutation, a colon or "below" at its end."""
    text = paragraph.strip()
    if not text:
        return False
    salutation = len(text.split()) <= 4 and text[-1] in ",-:–—"
    return (
        salutation
        or text.endswith((":", "...", "…"))
        or text[-20:].rstrip(_CLOSING_MARKS).endswith(_POINTS_DOWN)
        or _PERSON.search(_SPEECH.sub(" ", text)) is not None
    )


def _introduced_passage(
    lines: Sequence[str], own: Sequence[int], paragraphs: Sequence[tuple[int, int]], subject: str
) -> int | None:
    """Find a headed passage without any person in it, below own words and two blank lines or more."""
    for (_, above_end), (start, _) in pairwise(paragraphs):
        if start - above_end < 2:
            continue
        intro = " ".join(lines[own[position]] for position in range(paragraphs[0][0], above_end))
        heading = lines[own[start]].strip()
        if not (_speaks(intro) and _HEADING.match(heading) and heading[-1] not in ",;:-"):
            return None
        if not (_INTRODUCES.search(subject[:200]) or _INTRODUCES.search(intro[:_MAX_CHARS])):
            return None
        passage = "\n".join(lines[own[position]] for position in range(start, len(own)))[:_MAX_CHARS]
        if len(passage.split()) >= _MIN_PASSAGE_WORDS and not _SPEAKER_OR_READER.search(passage):
            return start
        return None
    return None


def _announced(lines: Sequence[str], own: Sequence[int], paragraphs: Sequence[tuple[int, int]]) -> int | None:
    """Find what the author says to be another's text ("here is the text of the rule", "see excerpt below").

    It begins below two blank lines, or with the first paragraph that speaks to nobody.
    """
    announced = False
    for at, (start, end) in enumerate(paragraphs):
        text = " ".join(lines[own[position]].strip() for position in range(start, end))[:_MAX_CHARS]
        if announced:
            apart = own[start] - own[paragraphs[at - 1][1] - 1] > 2
            if apart or not (_speaks(text) or is_closing(lines[own[start]])):
                below = sum(len(lines[own[position]].split()) for position in range(start, len(own)))
                return start if below >= _MIN_ANNOUNCED_WORDS else None
            continue
        if at == 0 and _EXCERPT.match(text) and not _PERSON.search(text):
            return start  # the heading of the excerpt is all that stands above it
        announced = any(
            not _AUTHOR.search(found["what"] or found["which"] or "") for found in _ANNOUNCES.finditer(text)
        )
    return None


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


def _set_in(lines: Sequence[str], own: Sequence[int], paragraphs: Sequence[tuple[int, int]]) -> int | None:
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
            return start if runs_on >= 0.5 and _person_share(" ".join(block)) < _MOSTLY_IMPERSONAL else None
        at += end - start
        deep_left -= deep
        lines_left -= end - start
    return None


def is_quotation(text: str, min_words: int) -> bool:
    """Tell whether fewer than `min_words` words stand outside of long passages in quotation marks."""
    first = _QUOTATION_MARK.search(text)
    if first is None or len(text[: first.start()].split()) >= min_words:
        return False
    return len(_QUOTATION.sub(_without_long, text).split()) < min_words


def _without_long(quotation: re.Match[str]) -> str:
    return " " if len(quotation.group()) >= _LONG_QUOTATION_CHARS else quotation.group()


_QUOTATION_MARK = re.compile('["“]')
_QUOTATION = re.compile(r"\"[^\"]*\"|“[^“”]*”")
# A shorter one is a title or a saying that the author's sentence holds.
_LONG_QUOTATION_CHARS = 100


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


def signing_name(text: str) -> str:
    """Return the name under a text, letters only, in lower case; "" when none stands there.

    A name counts below a closing ("Thanks,") or, alone, below a long text.
    """
    lines = [line.strip() for line in text[-400:].split("\n") if line and not line.isspace()]
    if len(lines) < 2 or len(lines[-1]) > 40 or not _SIGNED_NAME.match(lines[-1]) or is_closing(lines[-1]):
        return ""
    name = "".join(filter(str.isalpha, lines[-1])).lower()
    if len(name) < 4:
        return ""  # initials and short forms are anybody's
    if is_closing(lines[-2]) or (lines[-2][-1] in ".?!" and len(text.split()) >= _SIGNED_WORDS):
        return name
    return ""


@dataclass(frozen=True, slots=True)
class Signed:
    """The own words of one mail, for `find_doubtful`."""

    text: str
    sender: str
    bare_forward: bool
    """A forward by its subject, without the header of what it forwards and without a signature of its own."""


def find_doubtful(texts: Sequence[Signed]) -> set[int]:
    """Return the positions of texts that somebody else wrote, or may have written.

    These end in a name that is not the author's; or they are forwards whose author deleted the header of what
    he forwards, and end in no name of his. The author's names are those of the sender and every name that
    stands under two texts of the mailbox: people sign with names that no address knows.
    """
    signed = {position: name for position, mail in enumerate(texts) if (name := signing_name(mail.text))}
    often = frozenset(name for name, count in Counter(signed.values()).items() if count > 1)
    owners = frozenset().union(*(owner_names(mail.sender) for mail in texts)) if texts else frozenset()
    doubtful = {
        position
        for position, mail in enumerate(texts)
        if mail.bare_forward and not is_signed_by(mail.text, mail.sender, often)
    }
    if owners or often:
        doubtful |= {
            position
            for position, name in signed.items()
            if name not in often and not any(owner in name or name in owner for owner in owners)
        }
    return doubtful


def is_signed_by(text: str, sender: str, names: frozenset[str]) -> bool:
    """Tell whether a text ends in the author's name, initials or a name of `names` (letters, lower case)."""
    last = text[-200:].rsplit("\n", 1)[-1].lower()
    words = ["".join(filter(str.isalpha, word)) for word in last.split()[-6:]]
    ending = "".join(words[-3:])
    owners = owner_names(sender)
    initials = "".join(name[0] for name in re.findall(r"[^\W\d_]+", re.sub(r"@.*", "", sender.lower())))
    return any(word in owners or word in names for word in (*words, ending)) or (
        len(initials) >= 2 and bool(words) and words[-1].startswith(initials)
    )


@lru_cache(maxsize=256)
def owner_names(sender: str) -> frozenset[str]:
    """Return the words of a sender's name and of the address before its "@", three letters or more each."""
    named = re.sub(r"@[\w.-]*", " ", sender[:300].lower())
    return frozenset(re.findall(r"[^\W\d_]{3,}", named))
