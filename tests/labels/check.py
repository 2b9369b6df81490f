"""Compare what cleaning keeps with what the labels say, mailbox by mailbox.

python -m tests.labels.check              # the table
python -m tests.labels.check census       # of one set of labels
python -m tests.labels.check --ids        # and the ids of mails that are not exact, never their text
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.labels.sample import MAILBOX_FOLDER, MAILBOXES, SAMPLES, read_mailbox
from training.mail.clean import clean_mail, clean_mailbox
from training.schemas import DropReason

LABELS = Path(__file__).parent
SETS = (*SAMPLES, "census")
"""Folders of labels: two samples with every line, and what readers found in all mails that were kept."""
_WORD = re.compile(r"\S+")
Spans = list[tuple[int, int]]


@dataclass
class Figures:
    """One mailbox's labelled sample. Words are runs of characters other than blanks."""

    mailbox: str
    usable: int = 0
    """Usable mails of the whole mailbox."""
    labelled: int = 0
    kept: int = 0
    """Labelled mails that become examples."""
    own_words: int = 0
    """Words of the author's in them, by the labels."""
    kept_words: int = 0
    """How many of these cleaning keeps."""
    foreign_lines: int = 0
    """Lines in examples that hold a word which the labels do not give to the author."""
    unclear_words: int = 0
    """Own words lost because the mail was dropped as UNCLEAR_QUOTE."""
    other_words: int = 0
    """Own words in mails that are dropped for another reason (too short, duplicate, machine)."""
    drops: dict[str, int] = field(default_factory=dict)
    inexact: list[str] = field(default_factory=list)
    foreign: dict[str, int] = field(default_factory=dict)
    """Mail id → its lines of others, where there are any."""

    @property
    def kept_share(self) -> float:
        """Own words kept, as a share of those in examples; 1 when there are none."""
        return self.kept_words / self.own_words if self.own_words else 1.0


class StaleLabel(ValueError):
    """The decoded text of a mail is no longer the one that was labelled."""


def check(mailbox: str, samples: Sequence[str] = tuple(SAMPLES)) -> Figures:
    """Clean a whole mailbox and judge its labelled mails. Raises StaleLabel when a label no longer fits."""
    mails = read_mailbox(mailbox)
    cleaned = clean_mailbox(mails)
    by_id = {mail.id: mail for mail in mails}
    figures = Figures(mailbox, usable=len(cleaned.mails))
    for row in read_labels(mailbox, samples):
        text = clean_mail(by_id[row["id"]], cleaned.learnt)
        if hashlib.sha256(text.text.encode()).hexdigest()[:16] != row["text_sha256"]:
            raise StaleLabel(f"{mailbox} {row['id']}: decoding changed; see tests/labels/README.md")
        figures.labelled += 1
        own = [span for span in _words(text.text) if _inside(span, row["own"])]
        own = [span for span in own if not _inside(span, row["unsure"])]
        drop = cleaned.drop_of.get(row["id"])
        if drop is not None:
            figures.drops[drop.value] = figures.drops.get(drop.value, 0) + 1
            if drop is DropReason.UNCLEAR_QUOTE:
                figures.unclear_words += len(own)
            else:
                figures.other_words += len(own)
            continue
        kept = sum(_inside(span, text.own_spans) for span in own)
        foreign = _foreign_lines(text.text, text.own_spans, row["own"] + row["unsure"])
        figures.kept += 1
        figures.own_words += len(own)
        figures.kept_words += kept
        figures.foreign_lines += foreign
        if foreign:
            figures.foreign[row["id"]] = foreign
        if kept < len(own) or foreign:
            figures.inexact.append(
                f"{row['id']} ({row['stratum']}): {kept}/{len(own)} words, {foreign} lines"
            )
    return figures


def read_labels(mailbox: str, samples: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the labels of a mailbox; a sample may have none of it."""
    for sample in samples:
        path = LABELS / sample / f"{mailbox}.jsonl"
        if path.exists():
            yield from map(json.loads, path.read_text().splitlines())


def _words(text: str) -> Spans:
    return [found.span() for found in _WORD.finditer(text) if any(map(str.isalnum, found.group()))]


def _inside(span: tuple[int, int], spans: Spans | tuple[tuple[int, int], ...]) -> bool:
    return any(start <= span[0] < end for start, end in spans)


def _foreign_lines(text: str, kept: tuple[tuple[int, int], ...], allowed: Spans) -> int:
    at = 0
    foreign = 0
    for line in text.split("\n"):
        words = [(at + start, at + end) for start, end in _words(line)]
        foreign += any(_inside(word, kept) and not _inside(word, allowed) for word in words)
        at += len(line) + 1
    return foreign


def main() -> None:
    """Print the table for every mailbox at hand; mail text is never printed."""
    samples = [name for name in SETS if name in sys.argv] or list(SAMPLES)
    print("mailbox          usable labelled kept  own words  kept    foreign  lost as unclear  other drops")
    for mailbox in MAILBOXES:
        if not (MAILBOX_FOLDER / f"{mailbox}.jsonl").exists():
            print(f"{mailbox:16} not beside the repository")
            continue
        found = check(mailbox, samples)
        print(
            f"{mailbox:16} {found.usable:6} {found.labelled:8} {found.kept:4} {found.own_words:10} "
            f"{found.kept_share:6.1%} {found.foreign_lines:8} {found.unclear_words:10} words "
            f"{found.other_words:6} words {found.drops}"
        )
        if "--ids" in sys.argv:
            print(*(f"    {line}" for line in found.inexact), sep="\n")


if __name__ == "__main__":
    main()
