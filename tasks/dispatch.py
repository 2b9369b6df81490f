"""Starting what waits, and finding what was lost. CPU side.

Any number of dispatchers may run at once: a row is claimed by one of them (store/dispatch.py), and a lost
job is queued again under a guard that lets one of them win.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby
from uuid import UUID

import httpx
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events import emit_event
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Crashed

from store import dispatch, jobs
from tasks.cohort import QUEUES, start_cohort
from tasks.following import stop_if_training
from tasks.progress import not_essential
from tasks.stages import end_cancelled, take_back
from tasks.tools import database, settings
from training.errors import OrchestratorUnavailable, OwnvoiceError
from training.schemas import Job

JOB_CREATED = "ownvoice.job.created"
"""The event that starts dispatch-jobs at once (prefect.yaml); without it a row waits for the next minute."""
LOOK_EVERY_S = 1.0
QUIET_S = 30.0
"""A row that changed more recently is in somebody's hands; hooks end a job some seconds after its run."""
PENDING_LIMIT_S = 900.0
"""How long a run may be Pending: its worker has it but its process does not start (pulling an image takes
minutes). Prefect's heartbeats, and so its zombie automation, begin with Running."""
IDS_A_REQUEST = 150


def announce_waiting_jobs() -> None:
    """Emit the event that makes a dispatcher start now."""
    with not_essential("The event of waiting jobs"):
        emit_event(JOB_CREATED, resource={"prefect.resource.id": "ownvoice.jobs"})


@task(cache_policy=NO_CACHE)
def start_waiting_jobs(cohort_size: int | None = None, linger_s: float = 0) -> dict[str, int]:
    """Start every waiting job, in cohorts of one base model; keep looking for `linger_s` seconds.

    Jobs that arrive in a burst share one dispatcher that way. Returns how many jobs and runs were started.
    A cohort that cannot be started now stays waiting and is tried again.
    """
    started, runs = 0, 0
    until = time.monotonic() + linger_s
    while True:
        for cohort in cohorts(dispatch.claim_pending(database()), cohort_size or settings().cohort_size):
            try:
                run = start_cohort([job.id for job in cohort], cohort[0].base_model)
            except OrchestratorUnavailable as exc:
                get_run_logger().warning("%s", exc)
                continue
            started, runs = started + len(cohort), runs + 1
            get_run_logger().info("%d jobs on %s in flow run %s", len(cohort), cohort[0].base_model, run)
        if time.monotonic() >= until:
            return {"jobs": started, "runs": runs}
        time.sleep(LOOK_EVERY_S)


def cohorts(waiting: Iterable[Job], size: int) -> list[list[Job]]:
    """Split jobs into cohorts of one base model and one queue, at most `size` each, in order of age."""

    def kind(job: Job) -> tuple[str, str]:
        return QUEUES[job.trigger], job.base_model

    found: list[list[Job]] = []
    for _, group in groupby(sorted(waiting, key=kind), key=kind):
        jobs_of_kind = list(group)
        found += [jobs_of_kind[start : start + size] for start in range(0, len(jobs_of_kind), size)]
    return found


@task(cache_policy=NO_CACHE)
def recover_lost_jobs() -> dict[str, int]:
    """End or queue again every job whose flow run is not at work on it any more.

    What a hook or the flow itself could not do, because its machine, the Prefect server or the database
    was away at that moment. Returns how many jobs were queued again and ended.
    """
    at_work = dispatch.list_unfinished(database())
    quiet = {job.id for job in dispatch.list_unfinished(database(), quiet_s=QUIET_S)}
    again = ended = 0
    with get_client(sync_client=True) as client:
        runs = _read_runs(client, [job.flow_run_id for job in at_work if job.flow_run_id])
        for job in at_work:
            run = runs.get(job.flow_run_id or "")
            before = job.status, job.flow_run_id
            try:
                _pass_cancel_on(job, run)
                if job.id not in quiet and not (job.cancel_requested and job.flow_run_id is None):
                    continue
                _recover(client, job, run)
            except (OwnvoiceError, httpx.HTTPError, PrefectHTTPStatusError) as exc:
                get_run_logger().warning("job %s was not recovered: %s", job.id, type(exc).__name__)
                continue
            after = jobs.find_job(database(), job.id)
            ended += after.status.is_final
            again += not after.status.is_final and (after.status, after.flow_run_id) != before
    if again or ended:
        get_run_logger().warning("%d lost jobs queued again, %d ended", again, ended)
    return {"queuedAgain": again, "ended": ended}


def _pass_cancel_on(job: Job, run: FlowRun | None) -> None:
    """Let a job stop itself when its run was cancelled on Prefect's page and nobody stops the process.

    A worker that lost the server for half a minute no longer hears of cancels for the runs that it has.
    """
    if run is not None and run.state is not None and run.state.type == StateType.CANCELLING:
        jobs.request_cancel(database(), job.id)


def _recover(client: SyncPrefectClient, job: Job, run: FlowRun | None) -> None:
    state = run.state if run is not None else None
    stage = job.stage or "start"
    if run is not None and state is not None and _is_stuck(state):
        client.set_flow_run_state(run.id, Crashed(message="Pending for too long: its worker is gone."), True)
        state = None
    if state is None or state.type == StateType.CRASHED:
        stop_if_training(job)
        if job.cancel_requested:
            end_cancelled(job.id)
            return
        what = "is gone" if run is None else "crashed"
        reason = f"Its flow run {job.flow_run_id} {what} at stage {stage}."
        given_up = dispatch.requeue_vanished(database(), job.id, job.flow_run_id, reason)
        if given_up is not None and given_up.status.is_final:
            take_back(given_up)
    elif state.type == StateType.CANCELLED or (job.cancel_requested and state.type == StateType.SCHEDULED):
        stop_if_training(job)
        end_cancelled(job.id)
    elif state.is_final():
        stop_if_training(job)
        failed = jobs.fail_job(
            database(),
            job.id,
            "FLOW_VANISHED",
            f"Its flow run ended as {state.name} at stage {stage} without telling how the job ended. "
            f"Run `ownvoice retry {job.id}`: it goes on from the last finished stage.",
        )
        if failed:  # else it has ended meanwhile, and may be served
            take_back(job)


def _read_runs(client: SyncPrefectClient, run_ids: Sequence[str]) -> dict[str, FlowRun]:
    """Return the runs that the server knows, by id."""
    found: dict[str, FlowRun] = {}
    wanted = sorted(set(run_ids))
    for start in range(0, len(wanted), IDS_A_REQUEST):
        ids = [UUID(run_id) for run_id in wanted[start : start + IDS_A_REQUEST]]
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids)))
        found.update({str(run.id): run for run in runs})
    return found


def _is_stuck(state: State[object]) -> bool:
    age_s = (datetime.now(UTC) - state.timestamp).total_seconds()
    return state.type == StateType.PENDING and age_s > PENDING_LIMIT_S
