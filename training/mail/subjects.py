"""Subjects without what mail clients put in front of them."""

from __future__ import annotations

import re

_REPLY = "re|aw|antw|antwort|sv|vs|res|rif|odp|ynt|réf|ref|r|回复|答复|回覆"
_FORWARD = "fw|fwd|wg|tr|rv|enc|doorst|vb|vl|i|pd|fs|vidarebef|weitergeleitet|转发"
_PREFIX = re.compile(
    rf"[\s\[(]{{0,5}}(?:(?P<reply>{_REPLY})|(?P<forward>{_FORWARD}))\s?(?:[\[(]\d{{1,3}}[\])]|\*\d{{1,3}}|"
    rf"\^\d{{1,3}})?\s?[:：]\s{{0,9}}",
    re.I,
)


def clean_subject(subject: str) -> str:
    """Return `subject` without reply and forward prefixes, whitespace folded; "" when nothing is left."""
    text = " ".join(subject[:2_000].split())
    while match := _PREFIX.match(text):
        text = text[match.end() :]
    return text.strip()


def is_reply_subject(subject: str) -> bool:
    """Tell whether the outermost prefix is a reply's."""
    match = _PREFIX.match(subject)
    return match is not None and match["reply"] is not None


def is_forward_subject(subject: str) -> bool:
    """Tell whether the outermost prefix is a forward's."""
    match = _PREFIX.match(subject)
    return match is not None and match["forward"] is not None
