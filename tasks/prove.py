"""Judging a finished training: numbers into the job row, a decision and one sentence. CPU side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from store import jobs
from tasks.decision_page import show_decision
from tasks.job_folder import DATASET, HELD_OUT
from tasks.measured import Measured, read_measured
from tasks.outputs import read_outputs
from tasks.stages import still_in
from tasks.tools import database, job_folder, settings, without_mail_text
from training.dataset import from_jsonl
from training.evidence import gather_evidence
from training.full_gate import decide_full
from training.gate_config import load_gate_config
from training.panel import panel_texts
from training.schemas import GateDecision, JobMetrics, MailLoss, Stage
from training.skill import mean_loss

CURVE_POINTS = 60
"""Of a loss curve in the job row: as many as a small plot shows."""
_T = TypeVar("_T")


@task(cache_policy=NO_CACHE)
def evaluate_adapter(job_id: str) -> GateDecision:
    """Decide by losses and outputs whether the adapter goes live, and record every number behind it."""
    folder = job_folder(job_id)
    with without_mail_text("Judging the adapter"), still_in(job_id, Stage.EVALUATE):
        config = load_gate_config(settings().gate)
        measured = read_measured(folder)
        train, held_out = from_jsonl(folder.read_text(DATASET)), from_jsonl(folder.read_text(HELD_OUT))
        evidence = gather_evidence(
            measured.losses,
            train,
            held_out,
            read_outputs(folder, config),
            panel_texts(config, (*train, *held_out)),
            config,
        )
        decision = decide_full(evidence, config)
        job = jobs.record(database(), job_id, metrics=_job_metrics(measured, decision))
        show_decision(job, decision)
    jobs.add_event(database(), job_id, decision.reason)
    get_run_logger().info("%s: %s", decision.outcome, decision.reason)
    return decision


def _job_metrics(measured: Measured, decision: GateDecision) -> JobMetrics:
    training, losses = measured.training, measured.losses
    current = _mean(losses.current.held_out) if losses.current else None
    return JobMetrics(
        held_out_nll_base=_mean(losses.base.held_out),
        held_out_nll_adapter=_mean(losses.candidate.held_out),
        held_out_nll_current=current,
        held_out_emails=len(losses.candidate.held_out),
        held_out_tokens=sum(loss.tokens for loss in losses.candidate.held_out),
        train_tokens=training.train_tokens,
        train_tokens_per_second=round(training.train_tokens_per_second, 1),
        train_seconds=round(training.train_seconds, 2),
        device_seconds=measured.device_seconds,
        load_seconds=measured.load_seconds,
        trainers=measured.trainers,
        steps=training.steps,
        epochs=training.epochs,
        final_train_loss=round(training.final_train_loss, 4),
        peak_memory_bytes=training.peak_memory_bytes,
        device=training.device,
        gate=decision.reason,
        decision=decision,
        loss_curve=_rounded(thinned(training.loss_curve, CURVE_POINTS)),
        validation_curve=_rounded(thinned(training.validation_curve, CURVE_POINTS)),
    )


def thinned(points: Sequence[_T], most: int) -> tuple[_T, ...]:
    """Return at most `most` of the points, evenly apart, the first and the last among them."""
    if len(points) <= most:
        return tuple(points)
    return tuple(points[round(place * (len(points) - 1) / (most - 1))] for place in range(most))


def _rounded(points: Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    # NaN is no JSON, and PostgreSQL refuses it.
    return tuple((step, round(loss, 4)) for step, loss in points if math.isfinite(loss))


def _mean(losses: Iterable[MailLoss]) -> float | None:
    mean = mean_loss(losses)
    return round(mean, 4) if math.isfinite(mean) else None
