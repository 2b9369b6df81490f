"""Handing jobs to the GPU pool and following them. CPU side: mirrors the GPU's progress into the job rows."""

from __future__ import annotations

import time
from contextlib import ExitStack
from uuid import UUID

import httpx
from prefect import get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelling

from store import jobs
from tasks.job_folder import ADAPTER, CANCEL, ERROR, METRICS, PROGRESS, SPEC, JobFolder
from tasks.stages import stage
from tasks.tools import database, job_folder, settings
from training.errors import OrchestratorUnavailable, OwnvoiceError, StorageError, TrainingCancelled
from training.schemas import STAGE_PROGRESS, EventLevel, Job, JobSpec, Stage, TrainingProgress

DEPLOYMENT = "train-adapters/gpu"
POLL_S = 1.0
WAITING_NOTICE_S = 60.0
"""After this long without a GPU worker the event stream says what the job is waiting for."""
SERVER_GONE_S = 300.0
"""How long the Prefect server may be away before the job gives up on hearing of its training."""
CANCEL_GRACE_S = 10.0
"""How long a training may take to see the cancel marker before its flow run is cancelled as well."""
STOP_S = 30.0
"""How long a parent's end is held up for its training to stop."""
TRAIN_SPAN = 80 - STAGE_PROGRESS[Stage.TRAIN]
"""Training moves the job from 30 to 80 % (seeds)."""


@task(cache_policy=NO_CACHE)
def train_on_gpu(job_id: str) -> None:
    """Run the job's training on the GPU pool and wait for it. A training that is finished is not repeated.

    Raises what stopped it: TrainingDiverged and the like under their codes, TrainingCancelled, and
    TRAINING_CRASHED when the process died (a retry resumes from its checkpoint).
    """
    folder = job_folder(job_id)
    if folder.exists(METRICS):
        return
    with stage(job_id, Stage.TRAIN) as job:
        _write_spec(job, folder)
        folder.remove(ERROR, PROGRESS, CANCEL)
        run = run_deployment(
            DEPLOYMENT,
            parameters={
                "job_ids": [job_id],
                "base_model": job.base_model,
                "storage_url": settings().storage,
            },
            timeout=0,
            # Its runs are found by this tag; a name given here would be replaced by the flow's own.
            tags=[job_tag(job_id)],
            # A retry of the flow run makes a fresh training run, a repeated call inside one run does not.
            idempotency_key=f"{runtime.flow_run.id}:{runtime.flow_run.run_count}:{job_id}",
        )
        get_run_logger().info("training runs as flow run %s", run.id)
        _follow(run.id, job_id, folder)


def job_tag(job_id: str) -> str:
    """Return the tag of a job's training runs."""
    return f"job:{job_id}"


def stop_training(job_id: str) -> None:
    """Stop whatever training of the job is still at work, and wait until it has let go of the job folder.

    For a parent that was killed or cancelled and no longer follows its training. A training stops by itself
    at its next step and keeps its checkpoint; one that does not is cancelled. Gives up after `STOP_S`.
    """
    job_folder(job_id).write_text(CANCEL, "")
    unfinished = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[job_tag(job_id)]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(set(StateType) - TERMINAL_STATES))),
    )
    started = time.monotonic()
    with ExitStack() as stack:
        client = stack.enter_context(get_client(sync_client=True))
        while time.monotonic() - started < STOP_S:
            runs = client.read_flow_runs(flow_run_filter=unfinished)
            if not runs:
                return
            for run in runs:
                begun = run.state is not None and run.state.type == StateType.RUNNING
                if not begun or time.monotonic() - started > CANCEL_GRACE_S:
                    _cancel_run(client, run)
            time.sleep(POLL_S)


def _write_spec(job: Job, folder: JobFolder) -> None:
    current = jobs.current_adapter(database(), job.user_id)
    usable = (
        current is not None
        and current.base_model == job.base_model
        and job_folder(current.id).exists(ADAPTER)
    )
    folder.write_json(
        SPEC,
        JobSpec(
            job_id=job.id,
            base_model=job.base_model,
            version=job.version,
            train_config=job.config,
            current_adapter=current.id if current is not None and usable else None,
            start_adapter=job.incremental_from,
        ).to_json_dict(),
    )


def _follow(run_id: UUID, job_id: str, folder: JobFolder) -> None:
    """Mirror progress until the flow run has ended, pass a cancel on, then raise what went wrong."""
    db = database()
    started = heard = time.monotonic()
    cancelled_at: float | None = None
    noticed = False
    last: TrainingProgress | None = None
    with ExitStack() as stack:
        client = stack.enter_context(get_client(sync_client=True))
        while True:
            try:
                run = client.read_flow_run(run_id)
                heard = time.monotonic()
            except (httpx.HTTPError, PrefectHTTPStatusError) as exc:
                if time.monotonic() - heard > SERVER_GONE_S:
                    raise OrchestratorUnavailable(
                        f"The Prefect server has not answered for {SERVER_GONE_S:.0f} s while job {job_id} "
                        "trained. Start it and retry the job: it goes on from its checkpoint."
                    ) from exc
                time.sleep(POLL_S)
                continue
            last = _mirror(job_id, folder, last)
            if run.state is not None and run.state.is_final():
                break
            if cancelled_at is None and jobs.is_cancel_requested(db, job_id):
                folder.write_text(CANCEL, "")
                cancelled_at = time.monotonic()
            if cancelled_at is not None and time.monotonic() - cancelled_at > CANCEL_GRACE_S:
                _cancel_run(client, run)
                cancelled_at = time.monotonic()
            if not noticed and last is None and time.monotonic() - started > WAITING_NOTICE_S:
                noticed = True
                jobs.add_event(
                    db,
                    job_id,
                    f"Waiting for a worker on the pool {settings().gpu_pool}; none has taken the training",
                    level=EventLevel.WARN,
                )
            time.sleep(POLL_S)
    _raise_what_stopped(job_id, folder, run)


def _mirror(job_id: str, folder: JobFolder, last: TrainingProgress | None) -> TrainingProgress | None:
    """Copy the training's progress into the job row; progress that cannot be read now is read next time."""
    try:
        if not folder.exists(PROGRESS):
            return last
        now = TrainingProgress.model_validate(folder.read_json(PROGRESS))
    except (StorageError, ValueError):
        return last
    if now != last:
        percent = STAGE_PROGRESS[Stage.TRAIN] + TRAIN_SPAN * now.step / now.steps
        jobs.report_progress(database(), job_id, round(percent, 1), now.to_json_dict())
    return now


def _cancel_run(client: SyncPrefectClient, run: FlowRun) -> None:
    client.set_flow_run_state(run.id, Cancelling(), force=False)


def _raise_what_stopped(job_id: str, folder: JobFolder, run: FlowRun) -> None:
    if folder.exists(METRICS):
        return
    if jobs.is_cancel_requested(database(), job_id):
        raise TrainingCancelled(f"Job {job_id} was cancelled while it trained.")
    if folder.exists(ERROR):
        found = folder.read_json(ERROR)
        error = OwnvoiceError(str(found.get("message")))
        error.code = str(found.get("code"))
        raise error
    state = run.state
    error = OwnvoiceError(
        f"The training of job {job_id} ended as {state.name if state else 'unknown'} without a result. "
        f"Run `ownvoice retry {job_id}`: it resumes from its checkpoint."
    )
    error.code = "TRAINING_CANCELLED" if state and state.type == StateType.CANCELLED else "TRAINING_CRASHED"
    raise error
