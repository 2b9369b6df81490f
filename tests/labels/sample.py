"""Draw the mails that are labelled: the same ones each time, from every kind of mail a mailbox holds.

    python -m tests.labels.sample            # counts per mailbox and stratum

There are two samples with no mail in common: rules were written with the first at hand, the second was drawn
and labelled when they stood.

The strata are told apart by plain marks in the body, not by the cleaner, so that a fault of the cleaner
cannot choose its own examination. A mail belongs to the first stratum it fits, in the order of `stratum_of`;
each gives its three mails with the smallest SHA-256 of their id, and a stratum that has fewer leaves its
places to the others.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator

from training.mail.decode import decode_body
from training.schemas import Mail
from training.settings import PROJECT_ROOT

MAILBOX_FOLDER = PROJECT_ROOT.parent / "shared" / "data" / "mailboxes"

MAILBOXES = (
    "black-t", "dasovich-j", "david", "davis-pete", "fossum-d", "pereira-s", "wh-bianchi-s", "wh-cerda-j",
    "wh-emmett-l", "wh-rice-c", "wh-socarides-r",
)  # fmt: skip
SAMPLES = {"first": 0, "second": 8}
"""Name of a sample → how many mails of each stratum it leaves out; eight are more than the first takes."""
PER_STRATUM = 3
MAILS = 15
MIN_CHARS, MAX_CHARS = 20, 9_000
"""Shorter bodies hold nothing to separate; longer ones are pasted documents that nobody reads twice."""
LONG_CHARS = 2_500

_FORWARD = re.compile(r"Forwarded by|Forwarded message|[Ff]orwarded with", re.I)
_QUOTE = re.compile(
    r"^>|Original Message|\bwrote:\s*$|^\s*(?:To|cc|Subject|From|Sent|Record Type)\s?:", re.M | re.I
)
_BELOW_QUOTE = re.compile(r"^>.*\n\s*[^>\s]", re.M)
_SIGNATURE = re.compile(
    r"^--\s*$|(?:\d[-. )]{0,2}){7,}|^\s*(?:tel|phone|fax|sent from)\b|confidential", re.M | re.I
)
STRATA = ("bottom-posted", "forward", "long", "quote", "signature", "plain")


def stratum_of(mail: Mail, text: str) -> str:
    """Return the stratum of a mail; `text` is its decoded body."""
    stripped = text.strip()
    if _QUOTE.match(stripped) or _FORWARD.search(stripped[:80]) or _BELOW_QUOTE.search(stripped):
        return "bottom-posted"  # begins with somebody else's words or their header, or goes on below them
    if _FORWARD.search(text) or mail.subject.lower().startswith(("fw:", "fwd:")):
        return "forward"
    if len(text) >= LONG_CHARS:
        return "long"
    if _QUOTE.search(text):
        return "quote"
    return "signature" if _SIGNATURE.search(text) else "plain"


def read_mailbox(name: str) -> list[Mail]:
    """Read all mails of a shared mailbox, empty ones too; `Mail.id` is the `message_id` of the file."""
    lines = (MAILBOX_FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        Mail(
            id=row["message_id"],
            thread_id=row["message_id"],
            position=position,
            sender=row["from"] or "",
            subject=row["subject"] or "",
            body_text=row["body"] or "",
        )
        for position, row in enumerate(map(json.loads, lines), start=1)
    ]


def draw(mails: list[Mail], sample: str = "first") -> Iterator[tuple[Mail, str, str]]:
    """Yield (mail, decoded body, stratum) of a sample, ordered by stratum and then by hash."""
    drawers: dict[str, list[tuple[str, Mail, str]]] = {name: [] for name in STRATA}
    for mail in mails:
        text = decode_body(mail.body_text, mail.body_html)
        if len(text.strip()) >= MIN_CHARS and len(text) <= MAX_CHARS:
            order = hashlib.sha256(mail.id.encode()).hexdigest()
            drawers[stratum_of(mail, text)].append((order, mail, text))
    for name, drawer in drawers.items():
        drawers[name] = sorted(drawer, key=lambda entry: entry[0])[SAMPLES[sample] :]
    places = {name: min(PER_STRATUM, len(drawer)) for name, drawer in drawers.items()}
    while sum(places.values()) < MAILS:
        roomy = [name for name in STRATA if places[name] < len(drawers[name])]
        if not roomy:
            break
        places[min(roomy, key=lambda name: places[name])] += 1
    for name in STRATA:
        for _, mail, text in drawers[name][: places[name]]:
            yield mail, text, name


if __name__ == "__main__":
    for mailbox in MAILBOXES:
        for sample in SAMPLES:
            drawn = list(draw(read_mailbox(mailbox), sample))
            counts = {name: sum(stratum == name for *_, stratum in drawn) for name in STRATA}
            print(mailbox, sample, len(drawn), counts)
