"""Train the voices of several people on one loaded base model.

Started by dispatch-jobs and monthly-retrain for jobs that wait together. Needs what train-user needs. Each
job ends by itself, as there: one person's bad mail, cancel or refused adapter leaves the others alone.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger
from prefect.task_runners import ThreadPoolTaskRunner

from tasks.cohort import end_all, finish_job, prepare_job, train_together
from tasks.hooks import on_cancellation, on_crashed
from tasks.webhooks import deliver_webhooks


@flow(
    name="train-cohort",
    flow_run_name="train-cohort-{base_model}",
    # Finished jobs are published while the GPU trains the next ones; a cancelled one waits for none of them.
    task_runner=ThreadPoolTaskRunner(max_workers=16),  # type: ignore[arg-type]
    on_cancellation=[on_cancellation],
    on_crashed=[on_crashed],
)
def train_cohort(job_ids: list[str], base_model: str) -> list[dict[str, Any]]:
    """Train the voices of several people on one loaded base model.

    Args:
        job_ids: Waiting jobs, all of them on `base_model`.
        base_model: Key in configs/base_models.yaml.
    """
    ready = [job_id for job_id in job_ids if prepare_job(job_id)]
    get_run_logger().info("%d of %d jobs have enough mail", len(ready), len(job_ids))
    try:
        finishing = [finish_job.submit(ended) for ended in train_together(ready)]
    except Exception as error:
        end_all(ready, error)
        raise
    ended = [future.result() for future in finishing]
    deliver_webhooks()
    return ended


if __name__ == "__main__":
    import sys

    train_cohort(sys.argv[2:], sys.argv[1])
