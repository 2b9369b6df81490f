"""Long passages in quotation marks: the words of a letter, a law, a speech, a colleague.

A short one is a title or a saying that the author's sentence holds. From `MIN_QUOTED_WORDS` words on it fills
a line of the mail, and that line is not the author's. It is left out together with what the author drafted
between quotation marks: the two cannot be told apart, and on the eleven mailboxes beside the repository both
together are 1 % of the words (tests/labels/README.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from training.mail.paragraphs import Run, Span, runs_of

MIN_QUOTED_WORDS = 12
# "… in a safe place." Senator Murray, September 10, 1997: what may follow a quotation that is a paragraph.
_MAX_SOURCE_WORDS = 6
# A quotation that runs over paragraphs is closed within that many, or was never opened.
_MAX_PARAGRAPHS = 4
MARK = "…"

_OPEN = re.compile(r"(?:(?<=[\s(\[:—–-])|^)(?:[\"“„«]|``|'')(?=[^\s\"“”])")
# Scanners read a closing mark as two letters.
_CLOSE = re.compile(r"(?:[\"”“»]|'')(?=[\s.,;:)\]!?—–-]|$)|(?<=[.!?,\w] )(?:II|ll|11)[ \t]*$")
_CLOSES = "\"”“»'"
_MARKS = ('"', "“", "„", "«", "''")
_INTRODUCES = re.compile(r"(?:[:;]|--|—|–|\.{3})\s*$")


def find_quotations(lines: Sequence[str], own: Sequence[int]) -> tuple[set[int], list[Span]]:
    """Find long quotations in own lines.

    Returns the numbers of lines that are nothing else, and where quotations stand within a sentence of the
    author's. Linear in the text.
    """
    whole: set[int] = set()
    holes: list[Span] = []
    introduced = False
    quoting = {index for index in own if any(mark in lines[index] for mark in _MARKS)}
    if not quoting:
        return whole, holes
    runs = runs_of(lines, own)
    at = 0
    while at < len(runs):
        start, end = runs[at]
        at += 1
        if quoting.isdisjoint(own[start:end]):
            introduced = _INTRODUCES.search(lines[own[end - 1]][-40:]) is not None
            continue
        text = _text(lines, own, start, end)
        place = 0
        cut = False
        while opened := _OPEN.search(text, place):
            leads = not text[: opened.start()].strip()
            closed = _CLOSE.search(text, opened.end())
            if closed is None and leads:
                more = _paragraphs_to_close(lines, own, runs[at - 1 :])
                if more:
                    at += more
                    end = runs[at - 1][1]
                    text = _text(lines, own, start, end)
                    closed = _CLOSE.search(text, len(_text(lines, own, start, runs[at - 1][0])))
            if closed is None:
                cut = leads and introduced and len(text.split()) >= MIN_QUOTED_WORDS
                break
            place = closed.end()
            if len(text[opened.end() : closed.start()].split()) < MIN_QUOTED_WORDS:
                continue
            cut = leads and (not text[place:].strip() or _is_source(text[place:]))
            if cut:
                break
            end_of_words = closed.start() if closed.group()[0] in _CLOSES else closed.end()
            holes.append((_place(own, start, text, opened.end()), _place(own, start, text, end_of_words)))
        if cut:
            whole.update(index for index in own[start:end] if lines[index].strip())
        introduced = cut or _INTRODUCES.search(lines[own[end - 1]][-40:]) is not None
    return whole, holes


def _text(lines: Sequence[str], own: Sequence[int], start: int, end: int) -> str:
    return "\n".join(lines[own[position]] for position in range(start, end))


def _place(own: Sequence[int], start: int, text: str, offset: int) -> tuple[int, int]:
    """Return (line, column) of a place in the text of the own lines from position `start` on."""
    return own[start + text.count("\n", 0, offset)], offset - text.rfind("\n", 0, offset) - 1


def _paragraphs_to_close(lines: Sequence[str], own: Sequence[int], runs: Sequence[Run]) -> int:
    """Return how many paragraphs below the first end the quotation that it opens; 0 when none does.

    Each may begin with a mark of its own, as printers set it; another quotation within one ends the search.
    """
    for below, (start, end) in enumerate(runs[1:_MAX_PARAGRAPHS], start=1):
        text = _text(lines, own, start, end)
        opened = [found for found in _OPEN.finditer(text) if text[: found.start()].strip()]
        closed = _CLOSE.search(text)
        if closed is not None:
            return below if not opened or closed.start() < opened[0].start() else 0
        if opened:
            return 0
    return 0


def _is_source(text: str) -> bool:
    """Tell whether what follows a quotation names where it is from: names and dates on the same line."""
    words = text.split()
    return (
        "\n" not in text.strip()
        and len(words) <= _MAX_SOURCE_WORDS
        and (text.lstrip()[0] in "-–—(" or all(word[0].isupper() or word[0].isdigit() for word in words))
        and text.rstrip()[-1] not in "?!"
    )
