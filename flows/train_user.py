"""Train one person's voice, from their sent mail to a serving adapter.

Needs a database with the person's mail, a worker on the CPU pool (this flow) and one on the GPU pool (the
training it starts), and a serving engine. Leaves a job row that says how it ended, the adapter and its
numbers in the job folder, and, when the gate promotes it, the person's model name pointing at the adapter.
"""

from __future__ import annotations

import sys
from typing import Any

from prefect import flow
from prefect.states import Completed, State

from tasks.cohort import train_on_gpu
from tasks.data import prepare_data
from tasks.hooks import on_cancellation, on_crashed
from tasks.outputs import write_outputs
from tasks.prove import evaluate_adapter
from tasks.publish import activate, publish_adapter, withdraw_adapter, write_samples
from tasks.stages import claim_job, end_cancelled, end_failed
from tasks.webhooks import deliver_webhooks
from training.errors import InvalidTransition, TrainingCancelled
from training.schemas import Outcome, Trigger


@flow(
    name="train-user",
    flow_run_name="train-{user_id}",
    on_cancellation=[on_cancellation],
    on_crashed=[on_crashed],
)
def train_user(
    user_id: str,
    job_id: str | None = None,
    config: str | None = None,
    trigger: Trigger = Trigger.MANUAL,
    idempotency_key: str | None = None,
) -> dict[str, Any] | State[None]:
    """Train one person's voice, from their sent mail to a serving adapter.

    Args:
        user_id: The person's id or e-mail address.
        job_id: A waiting job to take up; without it a new one is made.
        config: Training preset in configs/train/, without .yaml.
        trigger: What asked for the training.
        idempotency_key: The same key twice gives one job.
    """
    try:
        job = claim_job(user_id, job_id, config, trigger, idempotency_key)
    except InvalidTransition as nothing:
        return Completed(name="NothingToDo", message=str(nothing))
    try:
        prepare_data(job.id)
        train_on_gpu(job.id)
        write_outputs(job.id)
        decision = evaluate_adapter(job.id)
        if decision.outcome is Outcome.PROMOTED:
            publish_adapter(job.id)
            write_samples(job.id)
        else:
            withdraw_adapter(job.id)
        return activate(job.id, decision).to_json_dict()
    except TrainingCancelled:
        return end_cancelled(job.id)
    except Exception as error:
        end_failed(job.id, error)
        raise
    finally:
        deliver_webhooks()


if __name__ == "__main__":
    train_user(*sys.argv[1:2])
