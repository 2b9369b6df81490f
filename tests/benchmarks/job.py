"""One whole job through the real local stack: what a person waits for, and how much of it is training.

The stack is started in a home of its own and stopped again whatever happens. It is a first job: the base
model's weights are unpacked on the way, which the next job finds done.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app import local
from store.database import open_database
from tests.benchmarks.child import Report
from tests.benchmarks.commands import (
    FIRST_PORT,
    embedded_environment,
    import_mailbox,
    seconds_between,
    timed,
    train_and_follow,
)
from tests.benchmarks.flow_runs import start_time
from tests.benchmarks.mailboxes import find_mailbox
from tests.benchmarks.train import BASE_MODEL, MAILBOX, PRESET
from training.estimate import estimate_error
from training.schemas import Job, Stage

TITLE = "One job"
OTHER_LIMIT_S = 60.0
"""Seconds of a job that may be anything but training steps."""


def measure(work: Path, quick: bool, report: Report) -> dict[str, Any]:
    """Start the stack, import the mailbox, train it with the command line, stop the stack."""
    # Imported here, because it imports pytest, which nothing else in a benchmark needs.
    from tests.stack import stack_settings, temporary_home

    mailbox = find_mailbox(MAILBOX)
    email = mailbox.owner[0]
    with temporary_home() as home, embedded_environment(home):
        settings = stack_settings(home)
        report(0, 100, "starting the stack")
        stack, up_seconds = timed(lambda: local.up(settings, first_port=FIRST_PORT))
        _, import_seconds = timed(lambda: import_mailbox(mailbox, home))
        assert stack.database_url is not None
        with open_database(stack.database_url) as db:
            preset = "cpu-smoke" if quick else PRESET
            job, wall_seconds = timed(lambda: train_and_follow(email, preset, home, db, report))
        latency = start_latency(stack.prefect_api_url, job)
        report(100, 100, "stopping the stack")
        _, down_seconds = timed(lambda: local.down(settings))
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
        "row_to_end_seconds": seconds_between(job.created_at, job.completed_at),
        # JSON columns forget the order of events.
        "stage_seconds": {stage: round(job.timings[stage], 2) for stage in Stage if stage in job.timings},
        "training_emails": job.training_emails,
        "held_out_emails": metrics.held_out_emails,
        "held_out_nll_base": metrics.held_out_nll_base,
        "held_out_nll_adapter": metrics.held_out_nll_adapter,
        "outcome": job.outcome,
        "train_tokens_per_second": metrics.train_tokens_per_second,
        "estimated_seconds": job.estimated_seconds,
        "device_seconds": metrics.device_seconds,
        "estimate_error": estimate_error(job),
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
        ["device time, a first guess before any measurement", _estimate(figures)],
        ["starting the stack, once", f"{figures['up_seconds']:.1f} s"],
    ]


def _estimate(figures: dict[str, Any]) -> str:
    error = figures.get("estimate_error")
    if error is None:
        return "unknown"
    return (
        f"{figures['estimated_seconds']:.0f} s, took {figures['device_seconds']:.0f} s ({error:+.0%}); "
        "the next one is measured"
    )


def start_latency(api_url: str, job: Job) -> dict[str, float]:
    """Return the seconds from the job's row to its flow run's start and to its first stage."""
    return {
        "row_to_running_seconds": seconds_between(job.created_at, start_time(api_url, job.flow_run_id)),
        "row_to_first_stage_seconds": seconds_between(job.created_at, job.started_at),
    }


def _nll(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
