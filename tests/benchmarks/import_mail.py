"""How many mails a second go from a mailbox file into the embedded PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from store.database import migrate, open_database
from store.importers.load import import_mailbox
from store.users import create_user
from tests.benchmarks.child import Report, run_child, serve
from tests.benchmarks.mailboxes import OWNER, find_or_generate, write_mbox

TITLE = "Import"
MAILBOX = "wh-rice-c"
GENERATED_MAILS = 1000
PEOPLE = 5
"""One mailbox is imported for so many people, one after another: one import alone is over in a blink."""


def measure(work: Path, quick: bool, report: Report) -> dict[str, Any]:
    """Import one mailbox as JSONL and as mbox, each in its own process; the server is started before."""
    # Imported here: this module is also the child, whose memory is measured and which needs none of it.
    from store import embedded
    from tests.stack import temporary_home

    lines = find_or_generate(MAILBOX, work, GENERATED_MAILS)
    sources = {"jsonl": lines, "mbox": write_mbox(lines, work / "converted.mbox")}
    figures: dict[str, Any] = {"mailbox": lines.name}
    with temporary_home() as home:
        url = embedded.start(home)
        for number, (kind, source) in enumerate(sources.items()):

            def on_progress(done: float, total: float, text: str, before: int = number) -> None:
                report(before + done / total, len(sources), text)

            request = {
                "url": url,
                "path": str(source.path),
                "format": kind,
                "people": 1 if quick else PEOPLE,
            }
            figures[kind] = run_child("tests.benchmarks.import_mail", request, on_progress)
            # The database server works for the import, but is no child of ours.
            del figures[kind]["others_share"]
    return figures


def table(figures: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the Markdown table, header first."""
    return [
        [f"{figures['mailbox']} into the embedded PostgreSQL", "mails", "mails/s", "peak memory"],
        *(
            [
                kind,
                f"{figures[kind]['mails']:,}",
                f"{figures[kind]['mails_per_second']:,.0f}",
                f"{figures[kind]['peak_rss_bytes'] / 1e6:,.0f} MB",
            ]
            for kind in ("jsonl", "mbox")
        ),
    ]


def _import(request: dict[str, Any], report: Report) -> dict[str, Any]:
    people, path = request["people"], Path(request["path"])
    reports = []
    with open_database(request["url"]) as db:
        migrate(db)
        for number in range(people):
            person = create_user(db, f"{request['format']}-{number}@example.org", consent=True)

            def on_progress(done: int, total: int, before: int = number) -> None:
                report(before + done / max(1, total), people, f"{request['format']} for person {before + 1}")

            reports.append(import_mailbox(db, person, path, aliases=(OWNER,), on_progress=on_progress))
    read, added = sum(r.read for r in reports), sum(r.added for r in reports)
    seconds = sum(r.seconds for r in reports)
    return {
        "mails": read,
        "added": added,
        "sent": sum(r.sent for r in reports),
        "bytes": path.stat().st_size * people,
        "seconds": round(seconds, 3),
        "mails_per_second": round(read / seconds, 1),
    }


if __name__ == "__main__":
    serve(_import)
