"""How many mails a second the cleaner separates into own words and everything else."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.benchmarks.child import Report, run_child, serve
from tests.benchmarks.mailboxes import Mailbox, find_mailbox, read_sent

TITLE = "Cleaning"
MAILBOX = "fossum-d"
"""1,025 mails, 82 % with quotes: the most work per mail of all."""


def measure(work: Path, quick: bool, report: Report) -> dict[str, Any]:
    """Clean one mailbox twice in one process; the first pass also loads the language models."""
    mailbox = find_mailbox(MAILBOX)
    request = {"name": mailbox.name, "path": str(mailbox.path), "owner": mailbox.owner, "quick": quick}
    return {"mailbox": mailbox.name, **run_child("tests.benchmarks.clean_mail", request, report)}


def table(figures: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the Markdown table, header first."""
    return [
        [f"training.mail.clean on {figures['mailbox']}", "mails/s", "peak memory"],
        *(
            [name, f"{figures[key]['mails_per_second']:,.0f}", f"{figures['peak_rss_bytes'] / 1e6:,.0f} MB"]
            for key, name in (("first", "first pass, language models loaded"), ("second", "second pass"))
        ),
    ]


def _clean(request: dict[str, Any], report: Report) -> dict[str, Any]:
    from training.mail.clean import clean_mailbox

    mails = read_sent(Mailbox(request["name"], Path(request["path"]), tuple(request["owner"])))
    mails = mails[: 150 if request["quick"] else None]
    figures: dict[str, Any] = {"mails": len(mails)}
    for number, name in enumerate(("first", "second")):
        done_before = number * len(mails)

        def on_progress(done: int, total: int, before: int = done_before, text: str = f"{name} pass") -> None:
            report(before + done, 2 * total, text)

        started = time.perf_counter()
        cleaned = clean_mailbox(mails, on_progress=on_progress)
        seconds = time.perf_counter() - started
        figures["usable"] = len(cleaned.mails)
        figures[name] = {"seconds": round(seconds, 3), "mails_per_second": round(len(mails) / seconds, 1)}
    return figures


if __name__ == "__main__":
    serve(_clean)
