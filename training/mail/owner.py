"""What the author of a mail is called, from the sender's name or address."""

from __future__ import annotations

import re
from functools import lru_cache

_WORD = re.compile(r"[^\W\d_]+")
_SUFFIXES = frozenset({"ii", "iii", "iv", "jr", "sr"})


@lru_cache(maxsize=256)
def owner_names(sender: str) -> frozenset[str]:
    """Return the words of a sender's name and of the address before its "@", three letters or more each."""
    return frozenset(word for word in _words(sender) if len(word) >= 3)


@lru_cache(maxsize=256)
def initials_of(sender: str) -> str:
    """Return the first letters of a sender's names in lower case, in order; "" when no name is known."""
    return "".join(word[0] for word in _words(sender))


@lru_cache(maxsize=256)
def given_name(sender: str) -> str:
    """Return the first of a sender's names in lower case; "" when there are fewer than two ("office@…")."""
    words = _words(sender)
    return words[0] if len(words) >= 2 and len(words[0]) >= 3 else ""


def _words(sender: str) -> list[str]:
    words = _WORD.findall(re.sub(r"@[\w.-]*", " ", sender[:300].lower()))
    return [word for word in words if word not in _SUFFIXES]
