"""The command line on a benchmark's own stack: its environment, an import, a training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from store import jobs
from store.database import Database
from tests.benchmarks.child import STOP_S, Report
from tests.benchmarks.mailboxes import Mailbox
from tests.benchmarks.train import BASE_MODEL
from training.errors import OwnvoiceError
from training.schemas import Job

T = TypeVar("T")

FIRST_PORT = 4840
"""Away from the ports of a stack that a developer or a test may have running."""
OURS = ("OWNVOICE_", "PREFECT_", "OLLAMA_", "DATABASE_URL", "INTERNAL_API_KEY", "FINE_TUNING_", "VASTAI_")


@contextmanager
def embedded_environment(home: Path, **settings: str) -> Iterator[None]:
    """Take every setting of the developer's out of the environment, so that all of the stack is embedded;
    `settings` are set instead."""
    kept = dict(os.environ)
    try:
        for name in kept:
            if name.startswith(OURS):
                del os.environ[name]
        # Said aloud because a worker, whose working folder is the repository, reads the `.env` in it.
        os.environ |= {
            "OWNVOICE_HOME": str(home),
            "OWNVOICE_SERVING": "llamacpp",
            "OWNVOICE_BASE_MODEL": BASE_MODEL,
            "FINE_TUNING_WEBHOOK_URL": "",
            **settings,
        }
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


def import_mailbox(mailbox: Mailbox, home: Path, email: str | None = None) -> None:
    """Import for the mailbox's owner, or for `email`, whose aliases the owner's addresses become."""
    user, *aliases = mailbox.owner if email is None else (email, *mailbox.owner)
    command = ["import", str(mailbox.path), "--user", user, "--consent", "--json"]
    command += [part for alias in aliases for part in ("--alias", alias)]
    with _command(command, home) as process:
        try:
            _answer(process)
        finally:
            _stop(process)


def train_and_follow(email: str, preset: str, home: Path, db: Database, report: Report) -> Job:
    """Run `ownvoice train --follow --json`, showing the job row's progress meanwhile (of 100).

    Raises OwnvoiceError when the job does not end as COMPLETED.
    """
    command = ["train", email, "--follow", "--json", "--config", preset]
    started = time.monotonic()
    with _command(command, home) as process:
        try:
            while process.poll() is None:
                now = next(iter(jobs.list_jobs(db, limit=1)), None)
                elapsed = time.monotonic() - started
                status = now.status.lower().replace("_", " ") if now else "waiting"
                report(now.progress if now else 0, 100, f"{status}, {elapsed:.0f} s")
                time.sleep(0.5)
        finally:
            _stop(process)
        answer = _answer(process)
    job = Job.model_validate(answer)
    if process.returncode != 0:
        raise OwnvoiceError(f"The job ended as {job.status} ({job.error_code}): {job.error_message}")
    return job


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Return what `call` returns and the seconds it took."""
    started = time.monotonic()
    return call(), time.monotonic() - started


def seconds_between(start: datetime | None, end: datetime | None) -> float:
    """Return the seconds from one moment to another, both of which must be known."""
    assert start is not None and end is not None
    return round((end - start).total_seconds(), 2)


def _command(arguments: list[str], home: Path) -> subprocess.Popen[str]:
    """Start the command line away from the repository, whose `.env` may name real servers."""
    command = [sys.executable, "-m", "app.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=home)


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the JSON that a command printed. Raises OwnvoiceError with the sentence that it failed with."""
    text, _ = process.communicate()
    answer: dict[str, Any] = json.loads(text or "{}")
    if "error" in answer or not answer:
        reason = answer.get("error", {}).get("message", f"exit code {process.returncode}, no answer")
        raise OwnvoiceError(f"`ownvoice` failed: {reason}")
    return answer


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
