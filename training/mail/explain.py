"""Why one mail is cut the way it is: what `ownvoice clean` shows.

Positions count characters of `Explanation.text`, the decoded body (`training.mail.decode.decode_body`):
HTML already rendered, line ends "\\n", transfer-encoding leftovers decoded. They do not fit the raw file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.mail.clean import MAX_WORDS, MIN_WORDS, Learnt, clean_mail
from training.mail.quotes import Cut
from training.schemas import DropReason, Mail


@dataclass(frozen=True, slots=True)
class CutSpan:
    """Characters `text_start` to `text_end` (exclusive) of the decoded body are left out."""

    reason: str
    """quote, attribution, reply, forward, header, pasted, introduced, quotation, signature, footer,
    disclaimer, list footer, attachment, archive stamp, noise or repeated tail."""
    text_start: int
    text_end: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is kept of one mail, what is cut, and whether the mail becomes an example."""

    text: str
    """The decoded body that all positions count in. It is mail text: print it, never log it."""
    own_words: str
    """Secrets are replaced and hard-wrapped lines joined, so it is not always a substring of `text`."""
    cut: tuple[CutSpan, ...]
    """In order, not overlapping."""
    own: tuple[tuple[int, int], ...]
    """(start, end) of every run of the author's own words."""
    kept: bool
    drop_reason: DropReason | None
    """None exactly when `kept`."""
    replaced_secrets: int

    def as_dict(self) -> dict[str, Any]:
        """Return what `ownvoice clean --json` prints: own_words, cut, kept, drop_reason."""
        return {
            "own_words": self.own_words,
            "cut": [
                {"reason": span.reason, "text_start": span.text_start, "text_end": span.text_end}
                for span in self.cut
            ],
            "kept": self.kept,
            "drop_reason": self.drop_reason.value if self.drop_reason else None,
        }


def explain(
    mail: Mail,
    learnt: Learnt = Learnt(),
    *,
    min_words: int = MIN_WORDS,
    max_words: int = MAX_WORDS,
) -> Explanation:
    """Clean one mail and say why each piece of it goes. Never raises because of what the mail holds.

    `learnt` is what its mailbox tells (`CleanedMailbox.learnt`). Judged by the mail alone:
    a mailbox drops more, for its language, for near-duplicates and when a program wrote it.
    """
    cleaned = clean_mail(mail, learnt, min_words=min_words, max_words=max_words)
    return Explanation(
        text=cleaned.text,
        own_words=cleaned.own_words,
        cut=tuple(CutSpan(*_trimmed(cleaned.text, cut)) for cut in cleaned.cuts),
        own=cleaned.own_spans,
        kept=cleaned.drop is None,
        drop_reason=cleaned.drop,
        replaced_secrets=cleaned.replaced_secrets,
    )


def _trimmed(text: str, cut: Cut) -> tuple[str, int, int]:
    """Leave blank lines around a cut out of its span."""
    piece = text[cut.start : cut.end]
    return (
        cut.reason,
        cut.start + len(piece) - len(piece.lstrip()),
        cut.end - len(piece) + len(piece.rstrip()),
    )
