"""Whose text a whole mail is, by what stands under it, in its subject and in itself.

A secretary writes from the account of whom they work for, a colleague's report is sent on without a word.
Such a mail is dropped and counted: its author's own words, if there are any, cannot be told.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from training.mail.closings import is_closing
from training.mail.owner import given_name, is_owners, owner_names
from training.mail.speech import SPEAKER_OR_READER
from training.mail.subjects import is_reply_subject

# A lone name below that many words is a signature even without a closing above it.
_SIGNED_WORDS = 150
# Characters of a mail in which the owner's own name as a subject tells a secretary's hand.
_SHORT = 400
_MAX_CHARS = 20_000

_SIGNED_NAME = re.compile(
    r"[-~–—]?\s?[A-Z][a-zà-ÿ][\w'’.-]*(?: [A-Z][\w'’.-]*){0,2}[.,!]?$|[A-Z]{2,12}(?: [A-Z]{2,12}){1,2}$"
)
_FROM_SUBJECT = re.compile(
    r"^(?:.{0,80}\b(?i:updates?)\b.{0,60}\s)?from "
    r"(?!(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun|Yester)day|To(?:day|morrow))(?P<name>[A-Z][a-z]+)\s*$"
)
_SUGGESTED_SUBJECT = re.compile(
    r"\b[Aa] (?:friend|colleague|reader) (?:made|wrote|sent|suggested) (?:me |us )?this\b"
    r"|\bposted on (?:their|its|the \w+['’]s?) web\b"
)
_BEGINS_LATE = re.compile(r"\s*(?:[2-9]|[1-9]\d)\.\s{2,}[A-Z]")
_FOR_SOMEBODY = re.compile(r"(?:^|\n)[-~ ]*(?P<writer>[A-Z][a-z]+) for (?P<owner>[A-Z][a-z]+)[.,]?\s*$")
# "Part I (Introduction)" is no person.
_GLOSS = re.compile(
    r"(?<!Part )(?<!Phase )(?<!Type )(?<!War )(?<!Level )(?<!Stage )(?<!Title )(?<!Class )(?<!Annex )"
    r"\bI \(([A-Z][a-z]+)\)"
)
# Curly quotation marks and apostrophes of a word processor that an older mail system read as letters; one may
# be a slip of the keyboard.
_PASTE_DAMAGE = re.compile(r"[a-z][DO],s?\b|\b[DO]&[A-Za-z]{2,}|\wD8\b")
_DAMAGE_HINTS = ("D,", "O,", "D&", "O&", "D8")
_MIN_DAMAGES = 2


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


def is_somebody_elses(text: str, *, subject: str, sender: str) -> bool:
    """Tell whether the own words of a mail are another's by its subject or by themselves.

    "Update from Chris"; "Martha for Drew" below it; "Drew is available" or "I (Elizabeth)" in it; it begins
    with the second item of a list; or it speaks to nobody and bears the damage that pasting from a word
    processor does to apostrophes ("StateD,s"): a document, whoever wrote it.
    """
    names, given, subject = owner_names(sender), given_name(sender), subject[:200]
    by_owner = is_signed_by(text, sender, frozenset())
    source = _FROM_SUBJECT.search(subject) if "from " in subject and not by_owner else None
    if source and source["name"].lower() not in names and not is_reply_subject(subject):
        return True
    if (" this" in subject or " web" in subject) and _SUGGESTED_SUBJECT.search(subject):
        return True
    if _BEGINS_LATE.match(text[:20]):
        return True
    signed = _FOR_SOMEBODY.search(text[-60:]) if " for " in text[-60:] else None
    if signed and signed["owner"].lower() in names and signed["writer"].lower() not in names:
        return True
    if "I (" in text and (gloss := _GLOSS.search(text)) and gloss[1].lower() not in names:
        return True
    if given and len(text) <= _SHORT and not by_owner and _named(given).search(text):
        return True
    return (
        any(damage in text for damage in _DAMAGE_HINTS)
        and len(_PASTE_DAMAGE.findall(text[:_MAX_CHARS])) >= _MIN_DAMAGES
        and SPEAKER_OR_READER.search(text[:_MAX_CHARS]) is None
    )


@lru_cache(maxsize=64)
def _named(given: str) -> re.Pattern[str]:
    """Return what a secretary says of a person: where they are and when they have time."""
    name = re.escape(given.capitalize())
    return re.compile(
        rf"(?<![\"“'‘])\b{name}(?:['’]s (?:calendar|schedule|office|desk|behalf)\b"
        r"|(?: is|['’]s| will be) (?:\w+ly |not )?(?:available|unavailable|free|out of|away|travell?ing|"
        r"in a meeting|in meetings|on vacation|on leave)\b)"
    )


def is_signed_by(text: str, sender: str, names: frozenset[str]) -> bool:
    """Tell whether a text ends in the author's name, initials or a name of `names` (letters, lower case)."""
    last = text[-200:].rsplit("\n", 1)[-1].split()[-6:]
    words = ["".join(filter(str.isalpha, word)).lower() for word in last]
    ending = "".join(words[-3:])
    owners = owner_names(sender)
    return any(word in owners or word in names for word in (*words, ending)) or (
        bool(last) and is_owners(last[-1], sender)
    )
