"""What the author of a mail is called, from the sender's name or address."""

from __future__ import annotations

import re
from functools import lru_cache

_WORD = re.compile(r"[^\W\d_]+")
_SUFFIXES = frozenset({"ii", "iii", "iv", "jr", "sr"})


@lru_cache(maxsize=256)
def owner_names(sender: str) -> frozenset[str]:
    """Return the words of a sender's name and of the address before its "@", three letters or more each."""
    words = _WORD.findall(re.sub(r"@[\w.-]*", " ", sender[:300].lower()))
    return frozenset(word for word in words if len(word) >= 3 and word not in _SUFFIXES)


@lru_cache(maxsize=256)
def initials_of(sender: str) -> str:
    """Return the first letters of a sender's names in lower case, in order; "" when no name is known."""
    return "".join(word[0] for word in _names(sender))


@lru_cache(maxsize=256)
def given_name(sender: str) -> str:
    """Return the first of a sender's names in lower case; "" when there are fewer than two ("office@…")."""
    words = _names(sender)
    return words[0] if len(words) >= 2 and len(words[0]) >= 3 else ""


def is_owners(word: str, sender: str) -> bool:
    """Tell whether a word is one of the sender's names or their initials ("jc3" of José Cerda III)."""
    letters = "".join(filter(str.isalpha, word)).lower()
    initials = initials_of(sender)
    if letters in owner_names(sender):
        return True
    short = min(len(letters), len(initials))
    return short >= 2 and letters[:short] == initials[:short]


def _names(sender: str) -> list[str]:
    """Return the words of the display name, else of the address; "Berg, Anna" is turned round."""
    shown = sender[:300].partition("<")[0].strip(' "')
    if not _WORD.search(shown) or "@" in shown:
        shown = re.sub(r"@[\w.-]*", " ", sender[:300].strip("<> "))
    last, comma, first = shown.partition(",")
    words = _WORD.findall((f"{first} {last}" if comma else shown).lower())
    return [word for word in words if word not in _SUFFIXES]
