"""One whole job through the real local stack: what a person waits for, and how much of it is training.

The stack is started in a home of its own and stopped again whatever happens. It is a first job: the base
model's weights are unpacked on the way, which the next job finds done.
"""

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

import httpx

from app import local
from store import jobs
from store.database import Database, open_database
from tests.benchmarks.child import STOP_S, Report
from tests.benchmarks.mailboxes import Mailbox, find_mailbox
from tests.benchmarks.train import BASE_MODEL, MAILBOX, PRESET
from training.errors import OwnvoiceError
from training.schemas import Job, Stage

T = TypeVar("T")

TITLE = "One job"
FIRST_PORT = 4840
"""Away from the ports of a stack that a developer or a test may have running."""
OTHER_LIMIT_S = 60.0
"""Seconds of a job that may be anything but training steps."""
OURS = ("OWNVOICE_", "PREFECT_", "OLLAMA_", "DATABASE_URL", "INTERNAL_API_KEY", "FINE_TUNING_", "VASTAI_")


def measure(work: Path, quick: bool, report: Report) -> dict[str, Any]:
    """Start the stack, import the mailbox, train it with the command line, stop the stack."""
    # Imported here, because it imports pytest, which nothing else in a benchmark needs.
    from tests.stack import stack_settings, temporary_home

    mailbox = find_mailbox(MAILBOX)
    email = mailbox.owner[0]
    with temporary_home() as home, _embedded_environment(home):
        settings = stack_settings(home)
        report(0, 100, "starting the stack")
        stack, up_seconds = _timed(lambda: local.up(settings, first_port=FIRST_PORT))
        _, import_seconds = _timed(lambda: _import(mailbox, home))
        assert stack.database_url is not None
        with open_database(stack.database_url) as db:
            preset = "cpu-smoke" if quick else PRESET
            job, wall_seconds = _timed(lambda: _train(email, preset, home, db, report))
        latency = _start_latency(stack, job)
        report(100, 100, "stopping the stack")
        _, down_seconds = _timed(lambda: local.down(settings))
    return {
        "mailbox": mailbox.name,
        "base_model": BASE_MODEL,
        "preset": preset,
        **describe(job, wall_seconds),
        **latency,
        "up_seconds": round(up_seconds, 1),
        "up_steps": stack.seconds,
        "import_seconds": round(import_seconds, 1),
        "down_seconds": round(down_seconds, 1),
    }


def describe(job: Job, wall_seconds: float) -> dict[str, Any]:
    """Return the figures of a completed job; `wall_seconds` is what the command line took for it."""
    metrics = job.metrics
    training = metrics.train_seconds or 0.0
    other = wall_seconds - training
    return {
        "wall_seconds": round(wall_seconds, 1),
        "train_step_seconds": round(training, 1),
        "other_seconds": round(other, 1),
        "other_limit_seconds": OTHER_LIMIT_S,
        "other_within_limit": other < OTHER_LIMIT_S,
        "row_to_end_seconds": _seconds_between(job.created_at, job.completed_at),
        # JSON columns forget the order of events.
        "stage_seconds": {stage: round(job.timings[stage], 2) for stage in Stage if stage in job.timings},
        "training_emails": job.training_emails,
        "held_out_emails": metrics.held_out_emails,
        "held_out_nll_base": metrics.held_out_nll_base,
        "held_out_nll_adapter": metrics.held_out_nll_adapter,
        "outcome": job.outcome,
        "train_tokens_per_second": metrics.train_tokens_per_second,
        "peak_memory_bytes": metrics.peak_memory_bytes,
        "adapter_bytes": job.adapter_size,
    }


def table(figures: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the Markdown table, header first."""
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in figures["stage_seconds"].items())
    within = "within" if figures["other_within_limit"] else "OVER"
    rate, limit = figures["train_tokens_per_second"], figures["other_limit_seconds"]
    return [
        [f"`ownvoice train --follow` for {figures['mailbox']}, {figures['training_emails']} mails", ""],
        ["from the command to its end", f"{figures['wall_seconds']:.1f} s"],
        ["of it training steps", f"{figures['train_step_seconds']:.1f} s"],
        [
            "of it everything else",
            f"{figures['other_seconds']:.1f} s ({within} the limit of {limit:.0f} s)",
        ],
        ["from the job's row to its end", f"{figures['row_to_end_seconds']:.1f} s"],
        ["of it by stage", f"{stages} s"],
        ["job row to running flow", f"{figures['row_to_running_seconds']:.1f} s"],
        ["job row to first stage", f"{figures['row_to_first_stage_seconds']:.1f} s"],
        [
            f"held-out loss on {figures['held_out_emails']} mails, base → adapter",
            f"{_nll(figures['held_out_nll_base'])} → {_nll(figures['held_out_nll_adapter'])} nat per token",
        ],
        ["outcome", str(figures["outcome"])],
        ["training speed", "unknown" if rate is None else f"{rate:,.0f} tokens/s"],
        ["peak memory of the training", f"{figures['peak_memory_bytes'] / 1e9:.2f} GB"],
        ["starting the stack, once", f"{figures['up_seconds']:.1f} s"],
    ]


def _train(email: str, preset: str, home: Path, db: Database, report: Report) -> Job:
    """Run `ownvoice train --follow --json`, showing the job row's progress meanwhile."""
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


def _import(mailbox: Mailbox, home: Path) -> None:
    command = ["import", str(mailbox.path), "--user", mailbox.owner[0], "--consent", "--json"]
    command += [part for alias in mailbox.owner[1:] for part in ("--alias", alias)]
    with _command(command, home) as process:
        try:
            _answer(process)
        finally:
            _stop(process)


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


def _start_latency(stack: local.Stack, job: Job) -> dict[str, float]:
    """Return the seconds from the job's row to its flow run's start and to its first stage."""
    run = httpx.get(f"{stack.prefect_api_url}/flow_runs/{job.flow_run_id}", timeout=30)
    run.raise_for_status()
    running = datetime.fromisoformat(run.json()["start_time"])
    return {
        "row_to_running_seconds": _seconds_between(job.created_at, running),
        "row_to_first_stage_seconds": _seconds_between(job.created_at, job.started_at),
    }


def _seconds_between(start: datetime | None, end: datetime | None) -> float:
    assert start is not None and end is not None
    return round((end - start).total_seconds(), 2)


@contextmanager
def _embedded_environment(home: Path) -> Iterator[None]:
    """Take every setting of the developer's out of the environment, so that all of the stack is embedded."""
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
        }
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    started = time.monotonic()
    return call(), time.monotonic() - started


def _nll(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
