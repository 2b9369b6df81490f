"""Following a training run on the GPU pool: its progress into the job rows, a cancel to the job it is for.

The run's flow state says only whether its process lives. What became of a job stands in its folder, so a
Prefect server or a database that is away for a while costs nothing but fresh numbers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelling

from store import jobs
from tasks.job_folder import CANCEL, ERROR, METRICS, PROGRESS, JobFolder
from tasks.progress import show_progress
from tasks.tools import database, job_folder, settings
from training.errors import (
    OrchestratorUnavailable,
    OwnvoiceError,
    StorageError,
    StoreUnavailable,
    TrainingCancelled,
)
from training.schemas import STAGE_PROGRESS, EventLevel, Job, JobStatus, Stage, TrainingProgress

POLL_S = 1.0
WAITING_NOTICE_S = 60.0
"""After this long without a GPU worker the event stream says what the job is waiting for."""
SERVER_GONE_S = 300.0
"""How long the Prefect server may be away, and the training silent, before a job is given up."""
CANCEL_GRACE_S = 10.0
"""How long a training may take to see the cancel marker before its flow run is cancelled as well."""
STOP_S = 30.0
"""How long a parent's end is held up for its training to stop."""
TRAIN_SPAN = 80 - STAGE_PROGRESS[Stage.TRAIN]
"""Training moves the job from 30 to 80 % (seeds)."""


@dataclass
class Following:
    """One job of a training run, as its follower knows it."""

    job_id: str
    folder: JobFolder
    moved: float = field(default_factory=time.monotonic)
    """When it last made progress."""
    last: TrainingProgress | None = None
    cancelled_at: float | None = None
    run_cancelled_at: float | None = None
    """When its whole run was told to stop, because it was deaf to its own marker."""
    told_that_it_waits: bool = False

    @property
    def has_ended(self) -> bool:
        return self.folder.exists(METRICS) or self.folder.exists(ERROR)

    @property
    def at_work(self) -> bool:
        """Whether the training has begun with this job and not ended it."""
        return self.last is not None and not self.has_ended


@dataclass(frozen=True)
class Ended:
    """A job whose part of a training run is over; `run_state` is set when the run itself has ended."""

    job_id: str
    run_state: str | None = None
    lost: bool = False
    """The run's process died before it had told what became of the job."""
    at_work: bool = False
    """It was this job that the run was training."""


def follow(run_id: UUID, job_ids: Sequence[str]) -> Iterator[Ended]:
    """Yield each job as soon as its part of the run is over, mirroring progress and cancels meanwhile.

    Raises OrchestratorUnavailable and StoreUnavailable after a long silence of everything.
    """
    following = [Following(job_id, job_folder(job_id)) for job_id in job_ids]
    heard = stored = time.monotonic()
    with ExitStack() as stack:
        client = stack.enter_context(get_client(sync_client=True))
        while following:
            run: FlowRun | None = None
            try:
                run = client.read_flow_run(run_id)
                heard = time.monotonic()
            except (httpx.HTTPError, PrefectHTTPStatusError) as exc:
                if time.monotonic() - max(heard, *(job.moved for job in following)) > SERVER_GONE_S:
                    raise OrchestratorUnavailable(
                        f"The Prefect server has not answered for {SERVER_GONE_S:.0f} s, nor has the "
                        "training. Start it and retry the job: it goes on from its checkpoint."
                    ) from exc
            final = run is not None and run.state is not None and run.state.is_final()
            try:
                for job in following:
                    _mirror(job)
                    _pass_cancel_on(job)
                over = [job for job in following if final or job.has_ended or _may_go(job, following)]
                stored = time.monotonic()
            except (StoreUnavailable, StorageError):
                # Training goes on without them; the row is brought up to date when they are back.
                if time.monotonic() - stored > settings().database_wait_s:
                    raise
                over = []
            for job in over:
                following.remove(job)
                yield _ended(job, run if final else None)
            if run is not None and following:
                _cancel_deaf(client, run, following)
            if following:
                time.sleep(POLL_S)


def raise_what_stopped(ended: Ended) -> None:
    """Raise the error that ended a job's training, or return when its adapter is there.

    TrainingCancelled, the GPU side's own errors under their codes, TRAINING_CRASHED when its process died.
    """
    folder = job_folder(ended.job_id)
    if folder.exists(METRICS):
        return
    if jobs.is_cancel_requested(database(), ended.job_id):
        raise TrainingCancelled(f"Job {ended.job_id} was cancelled while it trained.")
    if folder.exists(ERROR):
        found = folder.read_json(ERROR)
        error = OwnvoiceError(str(found.get("message")))
        error.code = str(found.get("code"))
        raise error
    error = OwnvoiceError(
        f"The training of job {ended.job_id} ended as {ended.run_state or 'unknown'} without a result. "
        f"Run `ownvoice retry {ended.job_id}`: it resumes from its checkpoint."
    )
    error.code = "TRAINING_CANCELLED" if ended.run_state == StateType.CANCELLED else "TRAINING_CRASHED"
    raise error


def stop_training(job_id: str) -> None:
    """Stop whatever training of the job is still at work, and wait until it has let go of the job folder.

    For a parent that was killed or cancelled and no longer follows its training. A training stops by itself
    at its next step and keeps its checkpoint; one that does not is cancelled, unless it serves other jobs
    too. Gives up after `STOP_S`.
    """
    folder = job_folder(job_id)
    folder.write_text(CANCEL, "")
    unfinished = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[job_tag(job_id)]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(set(StateType) - TERMINAL_STATES))),
    )
    started = time.monotonic()
    with ExitStack() as stack:
        client = stack.enter_context(get_client(sync_client=True))
        while time.monotonic() - started < STOP_S:
            runs = client.read_flow_runs(flow_run_filter=unfinished)
            if not runs or folder.exists(METRICS) or folder.exists(ERROR):
                return
            for run in runs:
                begun = run.state is not None and run.state.type == StateType.RUNNING
                alone = sum(tag.startswith("job:") for tag in run.tags) == 1
                if alone and (not begun or time.monotonic() - started > CANCEL_GRACE_S):
                    cancel_run(client, run)
            time.sleep(POLL_S)


def stop_if_training(job: Job) -> None:
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


def job_tag(job_id: str) -> str:
    """Return the tag of a job's training runs."""
    return f"job:{job_id}"


def cancel_run(client: SyncPrefectClient, run: FlowRun) -> None:
    client.set_flow_run_state(run.id, Cancelling(), force=False)


def _mirror(job: Following) -> None:
    """Copy the training's progress into the job row; progress that cannot be read now is read next time."""
    try:
        if not job.folder.exists(PROGRESS):
            return _notice_waiting(job)
        now = TrainingProgress.model_validate(job.folder.read_json(PROGRESS))
    except (StorageError, ValueError):
        return
    if now == job.last:
        return
    # The steps of a reference adapter are not the job's own.
    share = 0.0 if now.phase == "panel" else now.step / now.steps
    percent = STAGE_PROGRESS[Stage.TRAIN] + TRAIN_SPAN * share
    cost = now.seconds / 3600 * settings().hourly_price
    # Mail is measured and files are written without a step: only seconds and cost move then, in the row.
    moved = job.last is None or _place(now) != _place(job.last)
    row = jobs.report_progress(
        database(),
        job.job_id,
        round(percent, 1),
        {**now.to_json_dict(), "costSoFar": round(cost, 6)} if moved else None,
        eta_seconds=now.eta_seconds,
        cost=cost,
    )
    job.last, job.moved = now, time.monotonic()
    if row is not None:
        show_progress(
            row,
            f"{_doing(now)}: step {now.step} of {now.steps}, loss {now.loss:.2f}, "
            f"{now.eta_seconds:.0f} s left, ${cost:.4f} so far",
            now=False,
        )


def _place(now: TrainingProgress) -> tuple[str, int, int]:
    return now.phase, now.reference, now.step


def _doing(now: TrainingProgress) -> str:
    return f"reference adapter {now.reference} of {now.references}" if now.phase == "panel" else now.phase


def _notice_waiting(job: Following) -> None:
    if job.told_that_it_waits or time.monotonic() - job.moved < WAITING_NOTICE_S:
        return
    job.told_that_it_waits = True
    jobs.add_event(
        database(),
        job.job_id,
        f"Waiting for a worker on the pool {settings().gpu_pool}; none has taken the training",
        level=EventLevel.WARN,
    )


def _pass_cancel_on(job: Following) -> None:
    if job.cancelled_at is None and jobs.is_cancel_requested(database(), job.job_id):
        job.folder.write_text(CANCEL, "")
        job.cancelled_at = time.monotonic()


def _is_deaf(job: Following) -> bool:
    return _longer_ago(job.cancelled_at, CANCEL_GRACE_S)


def _longer_ago(moment: float | None, seconds: float) -> bool:
    return moment is not None and time.monotonic() - moment > seconds


def _may_go(job: Following, following: list[Following]) -> bool:
    """Tell whether a cancelled job need not wait for its training any longer.

    It need not while the run goes on for its neighbours, nor when the run itself does not stop (its machine
    is gone). The job's folder goes with it, and a training that finds none leaves the job alone.
    """
    alone = all(other.cancelled_at is not None for other in following)
    return _is_deaf(job) and (not alone or _longer_ago(job.run_cancelled_at, CANCEL_GRACE_S))


def _cancel_deaf(client: SyncPrefectClient, run: FlowRun, following: list[Following]) -> None:
    """Cancel the run itself when every job that is left was cancelled and none has listened."""
    if not all(_is_deaf(job) and job.run_cancelled_at is None for job in following):
        return
    with suppress(httpx.HTTPError, PrefectHTTPStatusError):
        cancel_run(client, run)
    for job in following:
        job.run_cancelled_at = time.monotonic()


def _ended(job: Following, run: FlowRun | None) -> Ended:
    state = run.state if run is not None else None
    silent = not job.has_ended
    return Ended(
        job_id=job.job_id,
        run_state=state.type.value if state is not None else None,
        lost=silent and state is not None and state.type == StateType.CRASHED,
        at_work=job.at_work,
    )
