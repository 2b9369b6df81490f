"""Whether a text is said to somebody: by "I", "you", "please", a salutation, a colon at its end."""

from __future__ import annotations

import re

PERSON = re.compile(
    r"\b(?:I|I['’](?:m|ll|ve|d)|we|we['’](?:re|ll|ve|d)|you|your|my|our|me|us|let['’]?s|pls|please|thanks|thx|fyi)\b",
    re.I,
)
# Documents say "we believe"; only a letter says "I" and "you".
SPEAKER_OR_READER = re.compile(r"\b(?:I|I['’](?:m|ll|ve|d)|you|your|my|me|let['’]s|pls|thanks|fyi)\b", re.I)
QUOTED = re.compile(r"\"[^\"]{0,800}\"|``[^`']{0,800}''|“[^”]{0,800}”")
# "Note however, that …", "Also here's the release"
_LEADS_ON = re.compile(r"(?:also|note|see|nb)\b|here(?:['’]s| is| are)\b", re.I)
_POINTS_DOWN = (" below", " follows", " unten", " ci-dessous", " abajo", " hieronder", " abaixo")
_CLOSING_MARKS = " .!)]-–—"
# First and second persons of the seven languages that mail is best known in.
_PERSONS = re.compile(
    r"\b(?:I|we|you|your|me|us|let['’]?s|ich|wir|du|sie|ihnen|mir|uns|dir|je|nous|vous|tu|moi|te|"
    r"yo|me|nos|usted|ustedes|mi|ci|vi|voi|lei|ik|wij|we|je|jij|u|eu|nós|você|vocês|lhe)\b|\bj['’]",
    re.I,
)
_MIN_SAID_WORDS = 4
_MIN_SMALL_WORDS = 2
_NOT_SAID = re.compile(
    r"https?://|www\.|@|\d{4}|confiden|privileg|recipient|vertraulich|destinat|printing|sent from", re.I
)


def person_share(text: str) -> float:
    """Return first and second persons outside of quotation marks, as a share of all words."""
    return len(PERSON.findall(QUOTED.sub(" ", text))) / max(1, len(text.split()))


def speaks(paragraph: str) -> bool:
    """Tell whether a paragraph is said to a reader: a person, a salutation, a colon or "below" at its end."""
    text = paragraph.strip()
    if not text:
        return False
    salutation = len(text.split()) <= 4 and text[-1] in ",-:–—"
    return (
        salutation
        or text.endswith((":", "...", "…"))
        or _LEADS_ON.match(text) is not None
        or text[-20:].rstrip(_CLOSING_MARKS).endswith(_POINTS_DOWN)
        or PERSON.search(QUOTED.sub(" ", text)) is not None
    )


def is_said(line: str) -> bool:
    """Tell whether a line is a whole sentence that somebody may say: no address, contact or disclaimer."""
    words = line.split()
    return (
        len(words) >= _MIN_SAID_WORDS
        and line.rstrip()[-1] in ".!?"
        and (_NOT_SAID.search(line) is None or (_PERSONS.search(line) is not None and "@" not in line))
        and sum(word[0].islower() for word in words) >= _MIN_SMALL_WORDS
    )
