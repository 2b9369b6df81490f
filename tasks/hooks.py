"""What happens when a train-user run ends without its own code: cancelled from outside, or its process died.

Prefect calls these in a new process under the worker: they know the flow run and the database, nothing else.
"""

from __future__ import annotations

import httpx
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import PrefectHTTPStatusError
from prefect.flows import Flow

from store import jobs, users
from tasks.cohort import stop_training
from tasks.stages import end_cancelled
from tasks.tools import database
from training.errors import OwnvoiceError
from training.schemas import EventLevel, Job, JobStatus


def on_cancellation(flow: Flow[..., object], flow_run: FlowRun, state: State[object]) -> None:
    """Mirror a cancel from the Prefect UI."""
    job = _job_of(flow_run)
    if job is None or job.status.is_final:
        return
    # First the training: at work it would write into the folder that is deleted here.
    _stop_training(job)
    end_cancelled(job.id)


def on_crashed(flow: Flow[..., object], flow_run: FlowRun, state: State[object]) -> None:
    """A flow process that died leaves a FAILED job that says so, not one that seems to run for ever."""
    job = _job_of(flow_run)
    if job is None or job.status.is_final:
        return
    # A retry must not meet the old training at work in the same folder; it resumes from the checkpoint.
    _stop_training(job)
    jobs.fail_job(
        database(),
        job.id,
        "FLOW_CRASHED",
        f"The process that ran the job died at stage {job.stage or 'start'}. "
        f"Run `ownvoice retry {job.id}`: it goes on from the last finished stage.",
    )


def _stop_training(job: Job) -> None:
    """Stop the job's training; one that cannot be reached must not keep the job from ending."""
    if job.status is not JobStatus.TRAINING:
        return
    try:
        stop_training(job.id)
    except (OwnvoiceError, httpx.HTTPError, PrefectHTTPStatusError) as exc:
        jobs.add_event(
            database(),
            job.id,
            f"The training could not be told to stop ({type(exc).__name__})",
            level=EventLevel.WARN,
        )


def _job_of(flow_run: FlowRun) -> Job | None:
    db = database()
    user = users.find_user(db, str(flow_run.parameters["user_id"]))
    for job in jobs.list_jobs(db, user.id, limit=10):
        if job.flow_run_id == str(flow_run.id) or job.id == flow_run.parameters.get("job_id"):
            return job
    return None
