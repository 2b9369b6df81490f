"""Undo the line breaks that a mail client made, keep those that the author made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

# Clients wrap between 60 and 80 columns (RFC 5322 §2.1.1 asks for at most 78; Lotus and ARMS exports, 74-80).
_MIN_WRAP = 60
_MAX_WRAP = 82
# A client may break a little before its limit (a space it counted, a character OCR lost).
_SLACK = 4

_NEW_ITEM = re.compile(r"\s*(?:[-*•·o>+]\s|\(?\d{1,2}[.):]\s?\S?|\(?[a-zA-Z][.)]\s)")
_COLUMNS = re.compile(r"\S(?: {4,}|\t)\S")
_SENTENCE_GAP = re.compile(r"(?<=[.!?:]) {3,}(?=\S)")
# Lines longer than a client wraps, as a share of all, below which a text still counts as wrapped.
_MAX_LONG_SHARE = 0.2
_THREE_LINES = re.compile(r"\n{4,}")

Run = tuple[int, int]
"""(first, after the last): positions in a list of line numbers."""
Span = tuple[tuple[int, int], tuple[int, int]]
"""((line, column), (line, column)): from one place of a text to another, the end exclusive."""


def runs_of(lines: Sequence[str], own: Sequence[int]) -> list[Run]:
    """Return the positions in `own` of every run of neighbouring lines that hold something: a paragraph."""
    runs: list[Run] = []
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


def tidy(text: str) -> str:
    """Return own words with trailing spaces, common indentation and more than two blank lines removed."""
    lines = [line.rstrip() for line in text.split("\n")]
    indent = min((len(line) - len(line.lstrip()) for line in lines if line), default=0)
    if indent:
        lines = [line[indent:] for line in lines]
    tidied = "\n".join(lines)
    return (_THREE_LINES.sub("\n\n\n", tidied) if "\n\n\n\n" in tidied else tidied).strip()


def unwrap(text: str) -> str:
    """Join the lines of hard-wrapped paragraphs; short lines, lists, columns and addresses stay.

    A greedy wrapper breaks only where the next word no longer fits. With W the longest wrapped line, the
    client broke line i iff `len(line_i) + 1 + len(first word of line_i+1) > W - slack`; every other break is
    the author's. A break after a finished sentence is joined only if the text also holds a break inside a
    sentence, because people do put sentences on lines of their own.
    """
    if len(text) <= _MIN_WRAP or "\n" not in text:
        return text
    lines = text.split("\n")
    lengths = [len(line) for line in lines if line]
    wrapped = [length for length in lengths if length <= _MAX_WRAP]
    width = max(wrapped, default=0)
    if width < _MIN_WRAP or len(lengths) - len(wrapped) > _MAX_LONG_SHARE * len(lengths):
        return text
    full = [_is_full(line, following, width) for line, following in pairwise(lines)]
    if not any(is_full and lines[at][-1] not in ".!?:;" for at, is_full in enumerate(full)):
        return text
    joined = [lines[0]]
    for at, following in enumerate(lines[1:]):
        if full[at]:
            joined[-1] = f"{joined[-1]} {following.strip()}"
        else:
            joined.append(following)
    return "\n".join(joined)


def _is_full(line: str, following: str, width: int) -> bool:
    if not following or not _MIN_WRAP - 10 <= len(line) <= _MAX_WRAP:
        return False
    if len(line) + 1 + len(following.split(None, 1)[0]) <= width - _SLACK:
        return False
    if line[-1] == ":" or _NEW_ITEM.match(following):
        return False
    if ("    " in line or "    " in following or "\t" in line or "\t" in following) and (
        _has_columns(line) or _has_columns(following)
    ):
        return False
    indent, next_indent = len(line) - len(line.lstrip()), len(following) - len(following.lstrip())
    return next_indent <= indent or _NEW_ITEM.match(line) is not None


def _has_columns(line: str) -> bool:
    """Tell whether a line is set in columns; a wide gap after a finished sentence is only typing."""
    return _COLUMNS.search(_SENTENCE_GAP.sub(" ", line.strip())) is not None
