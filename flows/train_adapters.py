"""Train the adapters of a cohort of jobs on one base model, loaded once.

Runs on the GPU pool only, started by other flows. Needs the job folders in storage, and nothing else: no
database, no serving engine. Leaves in each folder the adapter (PEFT and GGUF) and its numbers, or the error.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger
from prefect.states import Cancelled, Crashed, State

from tasks.trainers import train_jobs
from training.errors import OwnvoiceError, TrainerDied, TrainingCancelled


@flow(name="train-adapters", flow_run_name="train-{base_model}")
def train_adapters(
    job_ids: list[str], base_model: str, storage_url: str, side_by_side: bool = True
) -> list[dict[str, Any]] | State[None]:
    """Train the adapters of a cohort of jobs on one loaded base model.

    Args:
        job_ids: Jobs whose folders hold a data set; all of them on `base_model`.
        base_model: Key in configs/base_models.yaml.
        storage_url: fsspec URL under which the job folders are.
        side_by_side: Train in one trainer per core where that is faster; otherwise one job after another.
    """
    try:
        results = train_jobs(job_ids, storage_url, side_by_side=side_by_side)
    except TrainerDied as exc:
        # As if this process itself had died: whoever started the run starts it again for the jobs left.
        return Crashed(message=str(exc))
    failed = [result for result in results if not result.ok]
    get_run_logger().info(
        "%d of %d adapters trained on %s", len(results) - len(failed), len(results), base_model
    )
    if failed and len(failed) == len(results):
        if all(result.error_code == TrainingCancelled.code for result in failed):
            return Cancelled(message=f"All {len(results)} jobs of this cohort were cancelled.")
        raise OwnvoiceError(
            f"None of the {len(results)} jobs of this cohort was trained: {failed[0].error_message}"
        )
    return [result.to_json_dict() for result in results]


if __name__ == "__main__":
    import sys

    train_adapters(sys.argv[3:], sys.argv[1], sys.argv[2])
