"""Mail stays in the store and, while a job runs, in its folder: nothing that Prefect keeps quotes it."""

from __future__ import annotations

import json
import mailbox
import re
from collections.abc import Iterator
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from typing import Any

import httpx
import pytest

from store.database import Database
from tests.e2e.conftest import MainJob
from tests.e2e.stack import SAMPLE, Running

RUN_WORDS = 6
RUNS = 30


def plain(text: str) -> str:
    """Return lower-case words with single spaces, whatever quoting or JSON escapes stand between them."""
    return " ".join(re.findall(r"[^\W_]+", re.sub(r"\\[nrt]", " ", text).lower()))


def distinctive_phrases() -> list[str]:
    """Return runs of her own words, one each from mails all over the mailbox, and subjects."""
    messages = [
        BytesParser(policy=policy.default).parsebytes(message.as_bytes()) for message in mailbox.mbox(SAMPLE)
    ]
    runs, subjects = [], set()
    for message in messages:
        assert isinstance(message, EmailMessage)
        body = message.get_body(("plain",))
        text = plain(body.get_content().split("\n-- \n")[0]) if body is not None else ""
        own = text.partition("right then ")[2].split()
        if len(own) > 40:
            runs.append(" ".join(own[12 : 12 + RUN_WORDS]))
        subject = plain(
            re.sub(r"^(re|fwd?):", "", str(message["Subject"] or "").strip(), flags=re.IGNORECASE)
        )
        if len(subject.split()) >= 4:
            subjects.add(subject)
    return runs[:: max(1, len(runs) // RUNS)] + sorted(subjects)


def in_prefect(running: Running) -> Iterator[tuple[str, str]]:
    """Yield everything that Prefect's API gives out, but the samples (neutral prompts and their answers)."""
    for path in (
        "flow_runs/filter",
        "task_runs/filter",
        "logs/filter",
        "artifacts/filter",
        "deployments/filter",
    ):
        found = running.prefect_all(path)
        kept = [item for item in found if not str(item.get("key", "")).startswith("samples-")]
        assert kept, path
        yield path, json.dumps(kept, ensure_ascii=False)
    page: Any = running.prefect("events/filter", {"limit": 50})
    assert page["events"]
    while page["events"]:
        yield "events/filter", json.dumps(page["events"], ensure_ascii=False)
        if page["next_page"] is None:
            break
        page = httpx.get(page["next_page"], timeout=30).raise_for_status().json()


def in_files(running: Running, job_id: str) -> Iterator[tuple[str, str]]:
    places = [*(running.home / "logs").rglob("*"), *(running.home / "prefect").rglob("*")]
    kept = [path for path in running.folder(job_id).iterdir() if path.name != "samples.json"]
    # What the gate judged the adapter by: answers to prompts of her mail.
    names = {path.name for path in kept}
    assert "metrics.json" in names and "outputs.json" not in names
    places += kept
    # prefect.db is what the API gives out, and holds the samples.
    files = [path for path in places if path.is_file() and not path.name.startswith("prefect.db")]
    assert {path.name for path in files} >= {
        "worker-cpu.log",
        "worker-gpu.log",
        "prefect-server.log",
        "run.json",
    }
    for path in files:
        yield str(path.relative_to(running.home)), path.read_text(encoding="utf-8", errors="replace")


def in_tables(db: Database) -> Iterator[tuple[str, str]]:
    with db.connection() as connection:
        for table in ("FineTuningJob", "FineTuningEvent", "Outbox"):
            rows = connection.execute(f'SELECT to_jsonb(t)::text FROM "{table}" t').fetchall()  # type: ignore[call-overload]
            assert rows, table
            yield table, "\n".join(text for (text,) in rows)


def test_phrases_to_look_for_are_really_in_the_mailbox(main_job: MainJob, db: Database) -> None:
    with db.connection() as connection:
        rows = connection.execute('SELECT "subject", "bodyText", "bodyHtml" FROM "EmailMessage"').fetchall()
    stored = plain("\n".join(text for row in rows for text in row if text))
    phrases = distinctive_phrases()
    assert len(phrases) >= 2 * RUNS
    assert [phrase for phrase in phrases if phrase not in stored] == []


def test_no_mail_text_is_in_prefect_in_logs_or_in_job_rows(
    main_job: MainJob, running: Running, db: Database
) -> None:
    phrases = distinctive_phrases()
    for places in (in_prefect(running), in_files(running, main_job.job["id"]), in_tables(db)):
        for place, text in places:
            words = plain(text)
            assert [phrase for phrase in phrases if phrase in words] == [], place


@pytest.mark.usefixtures("main_job")
def test_gpu_worker_knows_neither_database_nor_secrets(running: Running) -> None:
    gpu, cpu = running.worker("worker-gpu").environ(), running.worker("worker-cpu").environ()
    assert cpu["DATABASE_URL"] == running.written["databaseUrl"]
    assert "DATABASE_URL" not in gpu
    assert running.written["databaseUrl"] not in gpu.values()
