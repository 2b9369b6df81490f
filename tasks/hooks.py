"""What happens when a run ends without its own code: cancelled from outside, or its process died.

Prefect calls these in a new process under the worker: they know the flow run and the database, nothing else.
"""

from __future__ import annotations

from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow

from store import dispatch, jobs
from tasks.dispatch import announce_waiting_jobs
from tasks.following import stop_if_training
from tasks.stages import end_cancelled, take_back
from tasks.tools import database
from training.errors import UnknownJob
from training.schemas import Job


def on_cancellation(flow: Flow[..., object], flow_run: FlowRun, state: State[object]) -> None:
    """Mirror a cancel from the Prefect UI to every job of the run."""
    for job in _jobs_of(flow_run):
        # First the training: at work it would write into the folder that is deleted here.
        stop_if_training(job)
        end_cancelled(job.id)


def on_crashed(flow: Flow[..., object], flow_run: FlowRun, state: State[object]) -> None:
    """Queue the jobs of a flow process that died again: they go on from their last finished stage."""
    lost = _jobs_of(flow_run)
    for job in lost:
        # The next run must not meet the old training at work in the same folder.
        stop_if_training(job)
        reason = f"The process that ran the job died at stage {job.stage or 'start'}."
        given_up = dispatch.requeue_vanished(database(), job.id, job.flow_run_id, reason)
        if given_up is not None and given_up.status.is_final:
            take_back(given_up)
    if lost:
        announce_waiting_jobs()


def _jobs_of(flow_run: FlowRun) -> list[Job]:
    """Return the unfinished jobs of a run, also those that it died too early to take up."""
    db = database()
    found = {job.id: job for job in dispatch.jobs_of_run(db, str(flow_run.id))}
    named = [flow_run.parameters.get("job_id"), *(flow_run.parameters.get("job_ids") or [])]
    for job_id in named:
        try:
            job = jobs.find_job(db, str(job_id)) if job_id else None
        except UnknownJob:
            continue
        if job is not None and job.flow_run_id is None:
            found[job.id] = job
    return [job for job in found.values() if not job.status.is_final]
