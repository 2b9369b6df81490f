"""Where text begins that the author says to be somebody else's, or that questions and documents give away.

"Here is the text of …", "She reported:", "they propose to add the following", "which reads:", "From Lee:", a
numbered question above each answer, the numbered headings of a regulation. First persons below such a line
are not the author's.

Calibrated on the eleven mailboxes beside the repository, all kept mails of which were read
(tests/labels/README.md).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from training.mail.closings import is_closing
from training.mail.owner import is_owners
from training.mail.paragraphs import Run, Span, runs_of
from training.mail.speech import PERSON, QUOTED, SPEAKER_OR_READER, speaks

# Fewer words below an introduction are a line that the author quotes while writing.
_MIN_WORDS = 15
# A passage below a heading that nobody introduces by name: shorter ones are lists and dates of the author's.
_MIN_PASSAGE_WORDS = 120
_MAX_SENTENCE = 260
_MAX_SENTENCE_LINES = 4
# "Stay tuned, and have a good weekend. Anna"
_MAX_CLOSING_WORDS = 8
_MAX_CHARS = 20_000
# More own lines are no letter but data: the mail is dropped for its length.
_MAX_LINES = 5_000
# The numbered questions of a list that somebody answers.
_MIN_QUESTIONS = 3
_MAX_QUESTION_LINES = 6
# Columns that a title of a page is set in by, at least.
_TITLE_COLUMNS = 8

_ENDS = re.compile(r"(?::|;|--|—|–|\.{3,4})\s*\]?$")
_SENTENCE = re.compile(r"(?<=[.?!])[\"”)]?\s+(?=[A-Z\[(])")
_NAME = (
    r"(?:interns?|staff(?:ers?)?|friends?|colleagues?|affairs|office|department|"
    r"(?!(?:I|We|You|This|That|These|Here|It|There)\b)[A-Z][\w.'’-]+)"
)
_SOMEBODY = rf"(?:he|she|they|who|{_NAME})"
_HAS = r"(?:['’](?:s|ve|d))?\s+(?:\w+ly\s+|just\s+|has\s+|have\s+|had\s+)?"
# A person wrote what follows: first and second persons in it are theirs. "Found" and "reported" are said of
# anything ("Problems found:"), so there only a pronoun counts.
_WRITTEN = re.compile(
    rf"\b{_SOMEBODY}{_HAS}(?:(?:wrote|written)(?![^.?!:]*\b(?:saying|that)$)|replied|e-?mailed|"
    r"sent\s+(?:us|me)\b)[^.?!:]{0,60}$"
    rf"|\b(?:[Hh]e|[Ss]he|[Tt]hey){_HAS}(?:reported|found|responded)\b[^.?!:]{{0,60}}$"
    rf"|\b{_SOMEBODY}(?:['’]ve|\s+has|\s+have)?\s+(?:proposes?|proposed|wants?|wanted)\s+to\s+"
    r"(?:add|insert)\b[^.?!:]{0,80}$"
    r"|^\[[^\]]{0,80}\b(?:wrote|said|replied|answered)$"
    r"|\b(?:schrieb|schreibt|écrit|escribió|scrive|scritto|schreef|escreveu)\b[^.?!:]{0,40}$"
)
# The same before a dash or dots.
_WRITTEN_BEFORE_DASH = re.compile(
    rf"(?:\b{_SOMEBODY}|\band)\s+would\s+edit\s+(?:it\s+)?as\s+follows$"
    r"|\b[Hh]ere(?:['’]s|\s+is|\s+are)\s+the\s+(?:\w+\s+){1,3}(?:that\s+)?you\s+(?:all\s+)?(?:received|got|saw)\b"
    r"[^.?!:]{0,30}$"
)
_BY_AUTHOR = re.compile(
    r"^I\b|\b(?:ich|je|yo|io|eu|ik|our)\b|\bj['’]|\bI['’]?(?:ve|d)?\s+(?:\w+\s+)?(?:wrote|sent|replied)\b",
    re.I,
)
_OURS = re.compile(r"\b(?:my|our)\b", re.I)
# A name alone on its line: the label belongs to what follows.
_FROM = re.compile(r"\s*From\s+(?P<name>[A-Z][\w.'’-]+(?:\s+[A-Z][\w.'’-]+)?)\s?:$")
# A text follows: it ends where the author speaks to somebody again.
_TEXT = re.compile(
    r"\b(?:which|(?:statute|law|act|bill|section|clause|letter|memo|guidance|statement|"
    r"regulations?|agreement|policy|paragraph|contract|tariff))\b[^.?!:]{0,50}"
    r"\s(?:reads?|says|states|provides)(?:\s+now|\s+as\s+follows|\s+in\s+(?:full|part))?$"
    r"|\bspeech\s+(?:now\s+)?has(?:\s+now)?$"
    r"|^\W*(?i:key|salient|closing|relevant)\s+(?:sentences?|quotes?|excerpts?|passages?|paragraphs?|language)$"
    r"|\b(?!(?:Our|My|This|Its|Here|That|What|Let|It|Today|Yesterday|\w+day)\b)[A-Z]\w+['’]s\s+"
    r"(?:version|language|write-?up)$"
    r"|\b[Aa]ccording\s+to\s+(?:his|her|their|the)\s+(?:press\s+|news\s+)?(?:advisory|release|letter|memo|notice)\b"
    r"[^.?!:]{0,40}$"
    r"|\b(?:article|story|release|transcript|excerpt)\s+(?:follows|below)$",
)
# "… are defined as: (1) …": a clause with its own numbers.
_DEFINED = re.compile(r"\b(?:is|are)\s+defined(?:\s+in\s+part)?\s+as(?:\s+follows)?$")
_CLAUSE = re.compile(r"\s*\(?(?:\d{1,2}|[a-z])[.)]\s{2,}\S")
# The same without a colon at the end of the sentence.
_USES = re.compile(
    r"\bparagraph\s+(?:now\s+)?(?:would|will)\s+read\W?$|^current\s+(?:version|text|wording)\s+of\b.{0,40}$|"
    r"\b(?:this|the\s+following)\s+(?:language|paragraph|passage),?\s+(?:which|that)\s+(?:was|is|appears?)\s+in\s+(?:the|an?)\b",
    re.I,
)
_USE_HINTS = ("language", "paragraph", "passage", "ersion of", "ext of", "ording of", " letter", " read")
# The themes of somebody's programme, in whose own voice they follow: "We must …".
_PROGRAMME = re.compile(
    r"\b(?:strategy|plan|agenda|platform|manifesto|programme?|proposal)\b[^.?!:]{0,80}"
    r"\b(?:themes|points|principles|goals|pillars)$"
)
_CREED = re.compile(r"\bWe (?:must|will|shall|believe)\b")
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
# No match of `_ANNOUNCES` without one of these; looked for first because that takes a tenth of the time.
_ANNOUNCE_HINTS = (
    "text of ", "text from ", "Wortlaut ", "Text ", "texte d", "testo d", "texto d", "xcerpt", "here it is",
    "memo from ", "ssage from ", "mail from ", "note from ", "etter from ", "rticle from ", "tory from ",
    "otice from ",
)  # fmt: skip
_MIN_ANNOUNCED_WORDS = 40
_AUTHOR = re.compile(r"\b(?:I|I['’]\w+|my|our|we|we['’]\w+|mein\w*|unser\w*|ich|wir|mon|mi|il mio)\b", re.I)
_EXCERPT = re.compile(r"[ \t]*excerpts? (?:from|of) ", re.I)
_HEADING = re.compile(r"[A-Z0-9][^.?!:]{5,90}$|[A-Z][\w ,'’-]{5,60}\.\s+[A-Z]")
# A subject or a sentence above a headed passage.
_INTRODUCES = re.compile(
    r"\b(?:here(?:['’]?s| is| are)|below|follow(?:s|ing)|(?:full |the )?text of|language|excerpts?|pasted|"
    r"from (?:today|yesterday)['’]s|hier ist|hier sind|unten|voici|ci-dessous|aquí|abajo|ecco|hieronder|"
    r"abaixo)\b",
    re.I,
)
_OWN_DRAFT = re.compile(r"\b(?:possible|suggested) (?:\w+ )?(?:language|wording|text)\b", re.I)
# The headings of statutes, regulations and official questions.
_DOCUMENT_HEADING = re.compile(
    r"[ \t]*(?:(?P<law>(?:Section|Sec\.|§)\s?\d+(?:\.\d+)+\.?\s+[A-Z])|"
    r"(?P<roman>(?!I\.)[IVXL]{1,6}\.\s+[A-Z][A-Z ,'’&-]{12,}$)|"
    r"(?P<word>[\w*·-]{3,40}\s{1,4}(?:adj|adv|noun|verb)\.?\s1\.\s))"
)
_HEADING_HINTS = ("Section ", "Sec. ", "§", "V. ", "X. ", "II. ", " 1. ")
# What a law says and a letter does not.
_LAW = re.compile(r"\b(?:shall|must not|pursuant|herein|subsection)\b|\([a-z]\)")
_FIRST_ROMAN = re.compile(r"^[ \t]*I\.\s", re.M)
_DATE_ALONE = re.compile(r"\s*(?:\d{1,2}[./]\d{1,2}[./]\d{2,4}|[A-Z][a-z]{2,8}\.? \d{1,2}, \d{4})\s*$")
_QUOTATION_MARKS = frozenset('"“„«')
# Nobody thanks for what they wrote themselves: the paragraph above is the reader's.
_THANKS_FOR_ABOVE = re.compile(
    r"\s*(?:thanks|thank you)\W{1,3}(?:I['’]?m |I am |so |very |really ){0,3}(?:glad|happy|pleased) "
    r"(?:that )?you (?:like|enjoy)",
    re.I,
)
_PRAISE = re.compile(
    r"\byour\b.{0,200}\b(?:great|nice(?:ly)?|well|love|enjoy\w*|like|excellent|beautiful(?:ly)?|impress\w*|good)\b",
    re.I | re.S,
)
_MAX_PRAISE_WORDS = 40
_ANSWERS = re.compile(r"\banswers? to (?:your|\w+['’]s)\b.{0,40}\bquestions?\b", re.I)
# A question, and further ones that follow it without a sentence between.
_ASKED = re.compile(r"[^?]{1,400}\?+(?:[^?.!]{1,300}\?+)*")
_NUMBERED = re.compile(r"[ \t]*(?:\(?\d{1,2}[.)}]|[a-z]\))\s{0,6}\S")


def find_questions(lines: Sequence[str], own: Sequence[int], *, subject: str = "") -> list[Span]:
    """Return where the numbered questions stand that the author answers one by one, and says so.

    Each from its number to its last question mark.
    """
    above = " ".join([subject[:200], *(lines[index] for index in own[:_MAX_QUESTION_LINES])])
    if "nswer" not in above.lower() or not _ANSWERS.search(above):
        return []
    items = [at for at, index in enumerate(own) if _NUMBERED.match(lines[index][:12])]
    asked: list[Span] = []
    for at, following in pairwise([*items, len(own)]):
        text = "\n".join(
            lines[own[position]] for position in range(at, min(following, at + _MAX_QUESTION_LINES))
        )
        question = _ASKED.match(text)
        if question and own[at + question.group().count("\n")] == own[at] + question.group().count("\n"):
            last = own[at + question.group().count("\n")]
            asked.append(((own[at], 0), (last, question.end() - text.rfind("\n", 0, question.end()) - 1)))
    return asked if len(asked) >= _MIN_QUESTIONS else []


def find_introduced(
    lines: Sequence[str], own: Sequence[int], *, subject: str = "", sender: str = ""
) -> list[Run]:
    """Return the positions in `own` of text that is somebody else's by what stands above it; in order.

    A closing or the author's name at the very end stays. Introductions are looked for in the first 20,000
    characters; what they introduce may go on to the end.
    """
    if len(own) > _MAX_LINES:
        return []
    text = "\n".join([lines[index] for index in own])[:_MAX_CHARS]
    runs = runs_of(lines, own)
    if len(text.split(None, _MIN_WORDS)) <= _MIN_WORDS or not runs:
        return []
    found = _introductions(lines, own, runs, text.count("\n"))
    if any(hint in text for hint in _ANNOUNCE_HINTS):
        start = _announced(lines, own, runs)
        if start is not None:
            found.append((start, len(own)))
    passage = _headed_passage(lines, own, runs, subject)
    if passage is not None:
        found.append((passage, len(own)))
    if any(hint in text for hint in _HEADING_HINTS):
        found += _documents(lines, own, runs)
    found += [
        above
        for above, (start, _) in pairwise(runs)
        if _THANKS_FOR_ABOVE.match(lines[own[start]]) and above != runs[0] and _is_praise(lines, own, *above)
    ]
    if " " * _TITLE_COLUMNS in text:
        found += _poster(lines, own, runs)
    end = _before_closing(lines, own, runs, sender) if found else len(own)
    return [(start, min(after, end)) for start, after in _joined(found) if start < end]


def _is_praise(lines: Sequence[str], own: Sequence[int], start: int, end: int) -> bool:
    text = _joined_lines(lines, own, start, end)
    return len(text.split()) <= _MAX_PRAISE_WORDS and _PRAISE.search(text) is not None


def _before_closing(lines: Sequence[str], own: Sequence[int], runs: Sequence[Run], sender: str) -> int:
    """Return the position of the last paragraph where it is a closing or ends in the author's name."""
    start, end = runs[-1]
    words = _joined_lines(lines, own, start, end).split()
    if len(runs) < 2 or len(words) > _MAX_CLOSING_WORDS:
        return len(own)
    signed = is_owners(words[-1], sender)
    return start if signed or is_closing(lines[own[start]]) else len(own)


def _introductions(lines: Sequence[str], own: Sequence[int], runs: Sequence[Run], last: int) -> list[Run]:
    """Find lines, up to position `last`, that end in a colon or a dash and say that somebody else wrote what
    follows."""
    found: list[Run] = []
    done = 0
    for at, (start, end) in enumerate(runs):
        for position in range(max(start, done), min(end, last + 1)):
            line = lines[own[position]].rstrip()
            ends = _ENDS.search(line[-8:])
            if not ends and position < end - 1:
                continue
            below = position + 1 if position + 1 < end else runs[at + 1][0] if at + 1 < len(runs) else None
            if below is None or lines[own[below]].lstrip()[0] in _QUOTATION_MARKS:
                continue  # a quotation ends with its mark
            sentence = _sentence(lines, own, start, position)
            if not ends and (position < end - 1 or not any(hint in sentence for hint in _USE_HINTS)):
                continue
            passage = _introduced_by(sentence, lines, own, runs, position, below)
            if passage is None:
                continue
            if sum(len(lines[own[where]].split()) for where in range(*passage)) >= _MIN_WORDS:
                found.append(passage)
                done = passage[1]
    return found


def _introduced_by(
    sentence: str, lines: Sequence[str], own: Sequence[int], runs: Sequence[Run], position: int, below: int
) -> Run | None:
    """Return the positions of what a sentence, which ends at `position`, says to be another's."""
    ends = _ENDS.search(sentence)
    if ends is None:
        return (below, _to_speech(lines, own, runs, below)) if _USES.search(sentence) else None
    bare = sentence[: ends.start()].rstrip()
    label = _FROM.match(lines[own[position]])
    if label:
        above = " ".join(lines[own[at]] for at in range(position))[:_MAX_CHARS]
        known = label["name"].split()[-1] in above
        return (position, _to_bracket(lines, own, runs, below)) if known else None
    by_colon = ends.group()[0] == ":"
    if (_WRITTEN if by_colon else _WRITTEN_BEFORE_DASH).search(bare) and not _BY_AUTHOR.search(bare):
        return below, _to_bracket(lines, own, runs, below)
    if (
        (_TEXT.search(bare) and not _OURS.search(bare))
        or (_DEFINED.search(bare) and _CLAUSE.match(lines[own[below]]))
        or (_PROGRAMME.search(bare) and _CREED.search(_joined_lines(lines, own, below, len(own))))
    ):
        return below, _to_speech(lines, own, runs, below)
    return None


def _sentence(lines: Sequence[str], own: Sequence[int], start: int, position: int) -> str:
    """Return the last sentence of the lines from position `start` to `position`."""
    sentence = ""
    for at in range(position, max(start, position - _MAX_SENTENCE_LINES) - 1, -1):
        sentence = f"{lines[own[at]].strip()[-_MAX_SENTENCE:]} {sentence}".rstrip()
        if len(sentence) > _MAX_SENTENCE:
            break
    return _SENTENCE.split(sentence[-_MAX_SENTENCE:])[-1]


def _to_bracket(lines: Sequence[str], own: Sequence[int], runs: Sequence[Run], below: int) -> int:
    """Return where what somebody wrote ends: at a remark of the author's in brackets, or with the mail."""
    for start, _ in runs[bisect_right(runs, (below, len(own))) :]:
        if lines[own[start]].lstrip().startswith("["):
            return start
    return len(own)


def _to_speech(lines: Sequence[str], own: Sequence[int], runs: Sequence[Run], below: int) -> int:
    """Return the start of the first later paragraph that speaks to somebody; the end when none does."""
    for start, end in runs[bisect_right(runs, (below, len(own))) :]:
        text = _joined_lines(lines, own, start, end)
        if SPEAKER_OR_READER.search(QUOTED.sub(" ", text)) or is_closing(lines[own[start]]):
            return start
    return len(own)


def _joined_lines(lines: Sequence[str], own: Sequence[int], start: int, end: int) -> str:
    return " ".join(lines[own[position]].strip() for position in range(start, end))[:_MAX_CHARS]


def _announced(lines: Sequence[str], own: Sequence[int], runs: Sequence[Run]) -> int | None:
    """Find where an announced text begins: below two blank lines, or with the first paragraph that speaks to
    nobody."""
    announced = False
    for at, (start, end) in enumerate(runs):
        text = _joined_lines(lines, own, start, end)
        if announced:
            apart = own[start] - own[runs[at - 1][1] - 1] > 2
            if apart or not (speaks(text) or is_closing(lines[own[start]])):
                below = sum(len(lines[own[position]].split()) for position in range(start, len(own)))
                return start if below >= _MIN_ANNOUNCED_WORDS else None
            continue
        if at == 0 and _EXCERPT.match(text) and not PERSON.search(text):
            return start  # the heading of the excerpt is all that stands above it
        announced = any(
            not _AUTHOR.search(found["what"] or found["which"] or "") for found in _ANNOUNCES.finditer(text)
        )
    return None


def _headed_passage(
    lines: Sequence[str], own: Sequence[int], runs: Sequence[Run], subject: str
) -> int | None:
    """Find a headed passage without any person in it, below own words and two blank lines or more."""
    for (_, above_end), (start, _) in pairwise(runs):
        if start - above_end < 2:
            continue
        intro = " ".join(lines[own[position]] for position in range(runs[0][0], above_end))
        heading = lines[own[start]].strip()
        if not (speaks(intro) and _HEADING.match(heading) and heading[-1] not in ",;:-"):
            return None
        if not (_INTRODUCES.search(subject[:200]) or _INTRODUCES.search(intro[:_MAX_CHARS])):
            return None
        if _OWN_DRAFT.search(intro[:_MAX_CHARS]):
            return None
        passage = "\n".join(lines[own[position]] for position in range(start, len(own)))[:_MAX_CHARS]
        if len(passage.split()) >= _MIN_PASSAGE_WORDS and not SPEAKER_OR_READER.search(passage):
            return start
        return None
    return None


def _documents(lines: Sequence[str], own: Sequence[int], runs: Sequence[Run]) -> list[Run]:
    """Find numbered headings of a law or an inquiry, each with what follows until the author speaks to
    somebody, and entries of a dictionary."""
    found: list[Run] = []
    done = 0
    agenda = any(_FIRST_ROMAN.match(lines[own[start]]) for start, _ in runs)
    for start, _ in runs:
        heading = _DOCUMENT_HEADING.match(lines[own[start]][:200]) if start >= done else None
        if heading is None or (heading["roman"] and agenda):
            continue
        after = len(own) if heading["word"] else _to_speech(lines, own, runs, start)
        if heading["law"] and not _LAW.search(_joined_lines(lines, own, start, after)):
            continue
        found.append((start, after))
        done = after
    return found


def _poster(lines: Sequence[str], own: Sequence[int], runs: Sequence[Run]) -> list[Run]:
    """Find a page that was pasted whole: a date and a title in capitals, set in the middle, come first."""
    head = [lines[own[position]] for start, end in runs[:2] for position in range(start, end)][:6]
    centred = [line for line in head if line.startswith(" " * _TITLE_COLUMNS) and line.isupper()]
    dated = _DATE_ALONE.match(head[0]) is not None
    return [(0, len(own))] if dated and len(centred) >= 2 else []


def _joined(found: Sequence[Run]) -> list[Run]:
    """Return runs in order, those that touch or overlap as one."""
    joined: list[Run] = []
    for start, end in sorted(found):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined
