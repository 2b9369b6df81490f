"""Judging a finished training: numbers into the job row, a decision and one sentence. CPU side."""

from __future__ import annotations

import math

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from store import jobs
from tasks.job_folder import ADAPTER_GGUF, METRICS
from tasks.progress import not_essential
from tasks.stages import stage
from tasks.tools import database, job_folder, settings
from training.config import parse_train_config
from training.gate import decide, mean_loss
from training.schemas import GateDecision, JobMetrics, MailLoss, Stage, TrainingResult


@task(cache_policy=NO_CACHE)
def evaluate_adapter(job_id: str) -> GateDecision:
    """Decide whether the adapter goes live, and record every number behind the decision."""
    db, folder = database(), job_folder(job_id)
    with stage(job_id, Stage.EVALUATE) as job:
        found = folder.read_json(METRICS)
        training = TrainingResult.model_validate(found["training"])
        losses = {
            arm: [MailLoss.model_validate(loss) for loss in arm_losses]
            for arm, arm_losses in found["heldOut"].items()
        }
        decision = decide(
            losses["base"], losses["adapter"], losses.get("current"), parse_train_config(job.config)
        )
        job = jobs.record(
            db,
            job_id,
            metrics=_job_metrics(training, losses, decision).model_copy(
                update={
                    "device_seconds": float(found["gpuSeconds"]),
                    "load_seconds": float(found.get("loadSeconds", 0)),
                    "trainers": int(found.get("trainers", 1)),
                }
            ),
            adapter_size=folder.size_of(ADAPTER_GGUF),
            adapter_digest=str(found["adapterDigest"]),
            adapter_path=f"{folder.url}/{ADAPTER_GGUF}",
            # What the device spent on this job; a cohort's jobs share one run, not one bill.
            actual_cost=round(float(found["gpuSeconds"]) / 3600 * settings().hourly_price, 6),
            eta_seconds=None,
        )
        with not_essential("The decision"):
            create_markdown_artifact(
                key=f"decision-{job_id}",
                markdown=f"**{decision.outcome}.** {decision.reason}\n\n| | |\n|---|---:|\n"
                + "\n".join(f"| {name} | {value:.4f} |" for name, value in decision.numbers.items())
                + f"\n\nCost: ${job.actual_cost or 0:.4f} (estimated ${job.estimated_cost or 0:.4f}).",
                description="Does the adapter go live?",
            )
    jobs.add_event(db, job_id, decision.reason)
    get_run_logger().info("%s: %s", decision.outcome, decision.reason)
    return decision


def _job_metrics(
    training: TrainingResult, losses: dict[str, list[MailLoss]], decision: GateDecision
) -> JobMetrics:
    current = mean_loss(losses.get("current", []))
    return JobMetrics(
        held_out_nll_base=round(mean_loss(losses["base"]), 4),
        held_out_nll_adapter=round(mean_loss(losses["adapter"]), 4),
        held_out_nll_current=None if math.isnan(current) else round(current, 4),
        held_out_emails=len(losses["adapter"]),
        held_out_tokens=sum(loss.tokens for loss in losses["adapter"]),
        train_tokens=training.train_tokens,
        train_tokens_per_second=round(training.train_tokens_per_second, 1),
        train_seconds=round(training.train_seconds, 2),
        steps=training.steps,
        epochs=training.epochs,
        final_train_loss=round(training.final_train_loss, 4),
        peak_memory_bytes=training.peak_memory_bytes,
        device=training.device,
        gate=decision.reason,
    )
