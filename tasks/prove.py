"""Judging a finished training: a decision and one sentence. CPU side."""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from store import jobs
from tasks.decision_page import show_decision
from tasks.job_folder import DATASET, HELD_OUT, LEARNT
from tasks.measured import read_measured
from tasks.outputs import read_outputs
from tasks.stages import still_in
from tasks.tools import database, job_folder, settings, without_mail_text
from training.dataset import from_jsonl
from training.evidence import gather_evidence
from training.full_gate import decide_full
from training.gate_config import load_gate_config
from training.panel import panel_texts
from training.schemas import GateDecision, JobMetrics, Stage


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
            # A job that an earlier release prepared has none.
            learnt=from_jsonl(folder.read_text(LEARNT)) if folder.exists(LEARNT) else (),
        )
        decision = decide_full(evidence, config)
        job = jobs.record(database(), job_id, metrics=JobMetrics(gate=decision.reason, decision=decision))
        show_decision(job, decision)
    jobs.add_event(database(), job_id, decision.reason)
    get_run_logger().info("%s: %s", decision.outcome, decision.reason)
    return decision
