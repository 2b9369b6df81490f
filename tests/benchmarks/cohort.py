"""Several people's trainings as one run each, and as one cohort that shares a loaded base model.

On the real local stack, with a preset of few steps, so that what is compared is what a training costs besides
its steps. Everybody has the same mailbox and trains for the first time: one person before the measurement
(the base model's weights are unpacked then), one alone, one group in separate runs, one group as a cohort.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from app import local
from app.session import Session
from app.training_jobs import start_job
from store import jobs, users
from store.database import Database, open_database
from tests.benchmarks.child import Report
from tests.benchmarks.commands import (
    FIRST_PORT,
    embedded_environment,
    import_mailbox,
    seconds_between,
    timed,
    train_and_follow,
)
from tests.benchmarks.flow_runs import count_base_loads, start_time, started_by, training_logs
from tests.benchmarks.job import describe, start_latency
from tests.benchmarks.mailboxes import SAMPLE, SAMPLE_OWNER, Mailbox
from tests.benchmarks.train import BASE_MODEL
from training.config import TrainConfig, load_train_config
from training.errors import OwnvoiceError
from training.schemas import Job, JobStatus, Trigger
from training.settings import Settings

TITLE = "Cohort"
PEOPLE = 8
QUICK_PEOPLE = 2
STEPS = 6
FEW_STEPS = f"""
base_model: {BASE_MODEL}
epochs: 1
max_steps: {STEPS}
learning_rate: 1.0e-3
batch_tokens: 256
lora: {{rank: 8, alpha: 16, dropout: 0.0}}
data: {{min_usable: 20, min_held_out: 4, max_held_out: 6}}
"""
UNTIL_S = 300.0
"""The longest wait for one job's share of a group; on two quiet cores a job takes a tenth of it."""
QUIET_SECONDS = range(20, 40)
"""Of a minute: its own dispatcher, due at second 0, has ended, and the next one is far."""

Share = Callable[[int, str], None]
"""Called with the number of a group's jobs that have ended, and what is going on."""


def measure(work: Path, quick: bool, report: Report) -> dict[str, Any]:
    """Start the stack, import the mailbox for everybody, train in each of the ways, stop the stack."""
    # Imported here, because it imports pytest, which nothing else in a benchmark needs.
    from tests.stack import stack_settings, temporary_home

    people = QUICK_PEOPLE if quick else PEOPLE
    preset = work / "few-steps.yaml"
    preset.write_text(FEW_STEPS, encoding="utf-8")
    mailbox = Mailbox("merrin (sample)", SAMPLE, SAMPLE_OWNER)
    first, alone, *rest = (f"person{number}@example.net" for number in range(1, 2 * people + 3))
    in_all = 2 * people + 2

    def from_job(number: int) -> Share:
        return lambda ended, text: report(number + ended, in_all, text)

    with temporary_home() as home, embedded_environment(home, OWNVOICE_COHORT_SIZE=str(people)):
        report(0, in_all, "starting the stack")
        settings = stack_settings(home)
        stack = local.up(settings, first_port=FIRST_PORT)
        for email in (first, alone, *rest):
            report(0, in_all, f"importing for {email}")
            import_mailbox(mailbox, home, email)
        assert stack.database_url is not None
        with open_database(stack.database_url) as db:

            def follow(email: str, before: int) -> Job:
                def on_percent(done: float, total: float, text: str) -> None:
                    report(before + done / total, in_all, f"one alone: {text}")

                return train_and_follow(email, str(preset), home, db, on_percent)

            follow(first, 0)
            single, wall_seconds = timed(lambda: follow(alone, 1))
            separate = _run_separately(rest[:people], str(preset), settings, db, from_job(2))
            config = load_train_config(str(preset))
            cohort = _run_as_cohort(rest[people:], config, stack.prefect_api_url, db, from_job(2 + people))
        api_url = stack.prefect_api_url
        figures: dict[str, Any] = {
            "people": people,
            "mailbox": mailbox.name,
            "base_model": BASE_MODEL,
            "steps": STEPS,
            "single": {
                **_describe_single(single, wall_seconds),
                **start_latency(api_url, single),
                "base_loads": _base_loads(api_url, [single]),
            },
            "separate": describe_group(separate, _base_loads(api_url, separate)),
            "cohort": {
                **describe_group(cohort, _base_loads(api_url, cohort)),
                **_dispatch(api_url, cohort[-1]),
            },
        }
        report(in_all, in_all, "stopping the stack")
    return {**figures, **compare(figures["separate"], figures["cohort"])}


def describe_group(ended: Sequence[Job], base_loads: int) -> dict[str, Any]:
    """Return the figures of a group's completed jobs, in the order of their rows."""
    wall = seconds_between(
        min(job.created_at for job in ended if job.created_at),
        max(job.completed_at for job in ended if job.completed_at),
    )
    training = sum(job.metrics.train_seconds or 0.0 for job in ended)
    return {
        "jobs": len(ended),
        "flow_runs": len({job.flow_run_id for job in ended}),
        "base_loads": base_loads,
        "wall_seconds": round(wall, 1),
        "train_step_seconds": round(training, 1),
        "other_seconds_per_job": round((wall - training) / len(ended), 1),
        "adapters_per_hour": round(3600 * len(ended) / wall, 1),
        "outcomes": dict(Counter(str(job.outcome) for job in ended)),
    }


def compare(separate: dict[str, Any], cohort: dict[str, Any]) -> dict[str, float]:
    """Return how many times as fast the cohort was as the separate runs."""
    return {"times_as_fast": round(separate["wall_seconds"] / cohort["wall_seconds"], 2)}


def table(figures: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the Markdown table, header first."""
    single, separate, cohort = figures["single"], figures["separate"], figures["cohort"]
    people, groups = figures["people"], (separate, cohort)
    by = {"event": "by the event", "schedule": "by the minute's schedule"}.get(cohort["dispatched_by"], "")
    return [
        [
            f"{figures['steps']} steps each, {figures['mailbox']}",
            "one alone",
            f"{people} separate runs",
            f"one cohort of {people}",
        ],
        ["from the first row to the last end", *_seconds("row_to_end_seconds", "wall_seconds", figures)],
        ["the cohort", "", "", f"{figures['times_as_fast']:.2f}x as fast"],
        ["base loads", *(str(way["base_loads"]) for way in (single, *groups))],
        ["flow runs on the CPU pool", "1", *(str(group["flow_runs"]) for group in groups)],
        ["training steps, in all", *_seconds("train_step_seconds", "train_step_seconds", figures)],
        ["everything else, a job", *_seconds("other_seconds", "other_seconds_per_job", figures)],
        [
            "adapters an hour",
            f"{single['adapters_per_hour']:.0f}",
            *(f"{group['adapters_per_hour']:.0f}" for group in groups),
        ],
        [
            "newest row to running flow",
            f"{single['row_to_running_seconds']:.1f} s",
            "",
            f"{cohort['row_to_running_seconds']:.1f} s {by}".strip(),
        ],
    ]


def _seconds(of_single: str, of_group: str, figures: dict[str, Any]) -> list[str]:
    groups = (figures["separate"], figures["cohort"])
    return [f"{figures['single'][of_single]:.1f} s", *(f"{group[of_group]:.1f} s" for group in groups)]


def _describe_single(job: Job, wall_seconds: float) -> dict[str, Any]:
    """Return the figures of the job alone; `other_seconds` counts from the command, as in the part `job`."""
    wanted = ("wall_seconds", "train_step_seconds", "other_seconds", "row_to_end_seconds", "outcome")
    described = describe(job, wall_seconds)
    per_hour = round(3600 / described["row_to_end_seconds"], 1)
    return {**{name: described[name] for name in wanted}, "adapters_per_hour": per_hour}


def _run_separately(
    emails: Sequence[str], preset: str, settings: Settings, db: Database, share: Share
) -> list[Job]:
    """Start a run of train-user for each, as `ownvoice train` does; the GPU pool takes one at a time."""
    session = Session()
    # Its own would be read from the developer's `.env` too.
    session.settings, session.db = settings, db
    share(0, "starting separate runs")
    try:
        started = [start_job(session, email, config=preset).id for email in emails]
    finally:
        session.orchestrator.close()
    return _wait(db, started, lambda ended, text: share(ended, f"separate runs: {text}"))


def _run_as_cohort(
    emails: Sequence[str], config: TrainConfig, api_url: str, db: Database, share: Share
) -> list[Job]:
    """Write waiting rows as the app does, and tell the dispatcher."""
    share(0, "cohort: waiting until the minute's dispatcher has ended")
    while datetime.now(UTC).second not in QUIET_SECONDS:
        time.sleep(0.5)
    made = [
        jobs.create_job(
            db,
            users.find_user(db, email).id,
            base_model=BASE_MODEL,
            config=config.model_dump(mode="json"),
            lora_rank=config.lora.rank,
            lora_alpha=config.lora.alpha,
            trigger=Trigger.APP,
        ).id
        for email in emails
    ]
    event = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": "ownvoice.job.created",
        "resource": {"prefect.resource.id": "ownvoice.jobs"},
        "payload": {},
        "related": [],
    }
    httpx.post(f"{api_url}/events", json=[event], timeout=30).raise_for_status()
    return _wait(db, made, lambda ended, text: share(ended, f"cohort: {text}"))


def _wait(db: Database, job_ids: Sequence[str], share: Share) -> list[Job]:
    """Wait until all jobs are COMPLETED; return them in the given order.

    Raises OwnvoiceError when one ends otherwise, or when they take too long.
    """
    started, limit_s = time.monotonic(), UNTIL_S * len(job_ids)
    while True:
        found = [jobs.find_job(db, job_id) for job_id in job_ids]
        ended = sum(job.status.is_final for job in found)
        wrong = Counter(f"{job.status} ({job.error_code})" for job in found if _is_wrong(job))
        if wrong:
            ends = ", ".join(f"{count} as {end}" for end, count in wrong.items())
            raise OwnvoiceError(f"Of {len(found)} jobs ended {ends}; figures of the others say nothing.")
        if ended == len(found):
            return found
        elapsed = time.monotonic() - started
        if elapsed > limit_s:
            raise OwnvoiceError(
                f"{ended} of {len(found)} jobs have ended after {limit_s:.0f} s. Measure on a quiet machine."
            )
        share(ended, f"{ended} of {len(found)} ended, {elapsed:.0f} s")
        time.sleep(1)


def _is_wrong(job: Job) -> bool:
    return job.status.is_final and job.status is not JobStatus.COMPLETED


def _base_loads(api_url: str, ended: Sequence[Job]) -> int:
    logs = training_logs(api_url, [job.id for job in ended])
    return sum(count_base_loads(messages) for messages in logs)


def _dispatch(api_url: str, newest: Job) -> dict[str, Any]:
    """Return the seconds from the newest row to its run's start, and what had woken the dispatcher."""
    running = start_time(api_url, newest.flow_run_id)
    return {
        "row_to_running_seconds": seconds_between(newest.created_at, running),
        "dispatched_by": started_by(api_url, str(newest.flow_run_id)),
    }
