"""Show the sample of a mailbox for labelling, and turn what was noted into spans.

    python -m tests.labels.write SAMPLE MAILBOX         # shows the mails with numbered lines. This is mail
                                                        # text: for a terminal or a file outside the
                                                        # repository only
    python -m tests.labels.write SAMPLE MAILBOX NOTES   # reads notes, writes labels/SAMPLE/MAILBOX.jsonl

A note is one line: `<number of the mail in the sample> own 0-3,7 unsure 9`, lines numbered from 0; `own -`
for none. A line that is only partly own is noted as `7:0-21`, characters of that line. What is neither is
somebody else's text, a signature block or a footer.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from itertools import accumulate
from pathlib import Path

from tests.labels.sample import draw, read_mailbox

LABELS = Path(__file__).parent
_PIECE = re.compile(r"(\d+)(?:-(\d+)|:(\d+)-(\d+))?$")


def show(sample: str, mailbox: str) -> None:
    """Print the sample with numbered lines; blank ones are left out."""
    for number, (mail, text, stratum) in enumerate(draw(read_mailbox(mailbox), sample)):
        print(f"=== {mailbox} {number} [{stratum}] subject: {mail.subject}")
        for at, line in enumerate(text.split("\n")):
            if line.strip():
                print(f"{at:3} {line}")


def write(sample: str, mailbox: str, notes: Path) -> None:
    """Write one label a line; raises ValueError for a mail without a note."""
    noted: dict[int, dict[str, str]] = {}
    for line in notes.read_text().splitlines():
        number, *words = line.split("#")[0].split() or [""]
        if number:
            noted[int(number)] = dict(zip(words[::2], words[1::2], strict=True))
    rows = []
    for number, (mail, text, stratum) in enumerate(draw(read_mailbox(mailbox), sample)):
        if number not in noted:
            raise ValueError(f"mail {number} of {mailbox} has no note")
        rows.append(
            {
                "id": mail.id,
                "stratum": stratum,
                "text_sha256": hashlib.sha256(text.encode()).hexdigest()[:16],
                "own": spans_of(text, noted[number].get("own", "-")),
                "unsure": spans_of(text, noted[number].get("unsure", "-")),
            }
        )
    target = LABELS / sample / f"{mailbox}.jsonl"
    target.parent.mkdir(exist_ok=True)
    target.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{target.name}: {len(rows)} mails")


def spans_of(text: str, note: str) -> list[tuple[int, int]]:
    """Return the character spans of a note such as "0-3,7,9:0-21", without the blanks at their ends."""
    if note == "-":
        return []
    lines = text.split("\n")
    starts = [0, *accumulate(len(line) + 1 for line in lines)]
    spans = []
    for piece in note.split(","):
        found = _PIECE.match(piece)
        if not found:
            raise ValueError(f"{piece!r} is no line range; write 3, 3-5 or 3:0-21")
        first = int(found[1])
        last = int(found[2] or first)
        start = starts[first] + int(found[3] or 0)
        width = len(lines[last])
        end = starts[last] + (min(int(found[4]), width) if found[4] else width)
        cut = text[start:end]
        spans.append((start + len(cut) - len(cut.lstrip()), end - len(cut) + len(cut.rstrip())))
    return spans


if __name__ == "__main__":
    if len(sys.argv) == 3:
        show(*sys.argv[1:])
    else:
        write(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
