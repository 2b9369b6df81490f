"""What others wrote, as a terminal or a page may show it: nothing in it is obeyed."""

from __future__ import annotations

_BIDIRECTIONAL = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Unicode's Bidi_Control (UAX #9): they may show a text in another order than it is written in."""
_CONTROLS = {code: "\ufffd" for code in (*range(9), *range(11, 32), *range(127, 160), *_BIDIRECTIONAL)}


def plain(text: str) -> str:
    """Return `text` with a mark for each control character but tab and line feed."""
    return text.translate(_CONTROLS)
