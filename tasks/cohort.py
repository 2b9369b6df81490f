"""Several jobs, one loaded base: starting their runs, and what happens to each of them. CPU side."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import httpx
from prefect import get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from store import dispatch, jobs
from tasks.data import prepare_data
from tasks.following import Ended, follow, job_tag, raise_what_stopped
from tasks.job_folder import ADAPTER, CANCEL, ERROR, METRICS, PROGRESS, SPEC, JobFolder
from tasks.measured import is_measured
from tasks.outputs import write_outputs
from tasks.prove import evaluate_adapter
from tasks.publish import activate, publish_adapter, withdraw_adapter, write_samples
from tasks.stages import ending, take_up
from tasks.tools import database, job_folder, settings
from training.errors import InvalidTransition, OrchestratorUnavailable
from training.schemas import EventLevel, Job, JobSpec, Outcome, RetrainMode, Stage, Trigger

ONE, SEVERAL, TRAINING = "train-user/default", "train-cohort/default", "train-adapters/gpu"
MAX_TRAININGS = 3
"""Training runs whose process may die before the jobs that are left end FAILED; each resumes."""
START_WAIT_S = 120.0
"""How long the start of a training run is tried while the Prefect server is away."""
QUEUES = {
    # high: somebody waits; normal: a threshold asked; bulk: the monthly round.
    Trigger.MANUAL: "high",
    Trigger.APP: "high",
    Trigger.MAIL_COUNT: "normal",
    Trigger.FEEDBACK: "normal",
    Trigger.SCHEDULE: "bulk",
}


def start_cohort(job_ids: Sequence[str], base_model: str) -> UUID:
    """Start the flow run that carries out claimed jobs, and bind them to it; one job gets a run of its own.

    Raises OrchestratorUnavailable, the claim being released then.
    """
    db = database()
    found = [jobs.find_job(db, job_id) for job_id in job_ids]
    parameters: dict[str, Any] = {"job_ids": list(job_ids), "base_model": base_model}
    if len(found) == 1:
        parameters = {"user_id": found[0].user_id, "job_id": found[0].id, "trigger": found[0].trigger.value}
    try:
        run = run_deployment(
            ONE if len(found) == 1 else SEVERAL,
            parameters=parameters,
            timeout=0,
            as_subflow=False,  # it outlives the flow that starts it
            tags=[f"user:{job.user_id}" for job in found],
            # The claim's moment: a dispatcher that repeats itself gets its run back, a later claim a new one.
            idempotency_key=f"{found[0].id}:{found[0].dispatched_at}:{len(found)}",
        )
    except (httpx.HTTPError, PrefectHTTPStatusError, ObjectNotFound) as exc:
        dispatch.release_claim(db, job_ids)
        raise OrchestratorUnavailable(
            f"The Prefect server could not start {len(found)} waiting jobs ({type(exc).__name__}). "
            "They stay PENDING and are tried again within a minute."
        ) from exc
    dispatch.bind_run(db, job_ids, str(run.id))
    return run.id


@task(cache_policy=NO_CACHE)
def train_on_gpu(job_id: str) -> None:
    """Run the job's training on the GPU pool and wait for it. A training that is finished is not repeated.

    Raises what stopped it: TrainingDiverged and the like under their codes, TrainingCancelled, and
    TRAINING_CRASHED when its process died again and again.
    """
    for ended in train_together([job_id]):
        raise_what_stopped(ended)


def train_together(job_ids: Sequence[str]) -> Iterator[Ended]:
    """Train jobs of one base model in one GPU run; yield each as soon as it has ended there.

    A run whose process died is started again for the jobs that it had not finished, the one that it was
    at work on last, one after another: if one of them killed it, its neighbours are done by then.
    """
    waiting = [job_id for job_id in job_ids if not _is_over(job_id)]
    yield from (Ended(job_id) for job_id in job_ids if job_id not in waiting)
    began = time.monotonic()
    for attempt in range(1, MAX_TRAININGS + 1):
        if not waiting:
            return
        run = start_training(waiting, attempt)
        lost: list[Ended] = []
        for ended in follow(run, waiting):
            jobs.record(
                database(), ended.job_id, timings={Stage.TRAIN.value: round(time.monotonic() - began, 2)}
            )
            if ended.lost and attempt < MAX_TRAININGS:
                lost.append(ended)
            else:
                yield ended
        waiting = [ended.job_id for ended in sorted(lost, key=lambda ended: ended.at_work)]
        for job_id in waiting:
            jobs.add_event(
                database(),
                job_id,
                f"The training process died; starting it again (attempt {attempt + 1} of {MAX_TRAININGS})",
                level=EventLevel.WARN,
            )


def start_training(job_ids: Sequence[str], attempt: int) -> UUID:
    """Write each job's `job.json` and start one run of train-adapters for them all; returns its id."""
    entered = []
    for job_id in job_ids:
        entered.append(jobs.enter_stage(database(), job_id, Stage.TRAIN))
        folder = job_folder(job_id)
        _write_spec(entered[-1], folder)
        folder.remove(ERROR, PROGRESS, CANCEL)
        if not is_measured(folder):
            # Numbers of an earlier version: training goes on from its checkpoint and measures the rest.
            folder.remove(METRICS)
    started = time.monotonic()
    while True:
        try:
            run = run_deployment(
                TRAINING,
                parameters={
                    "job_ids": list(job_ids),
                    "base_model": entered[0].base_model,
                    "storage_url": settings().storage,
                    # After a death the job that did it must be alone at work when it dies again.
                    "side_by_side": attempt == 1,
                },
                timeout=0,
                # Its runs are found by these tags; a name given here would be replaced by the flow's own.
                tags=[job_tag(job_id) for job_id in job_ids],
                # A retry of the flow run makes a fresh training run, a repeated call in one run does not.
                idempotency_key=f"{runtime.flow_run.id}:{runtime.flow_run.run_count}:{job_ids[0]}:{attempt}",
                work_queue_name=QUEUES[entered[0].trigger],
            )
        except (httpx.HTTPError, PrefectHTTPStatusError) as exc:
            if time.monotonic() - started > START_WAIT_S:
                raise OrchestratorUnavailable(
                    f"The Prefect server has not started a training for {START_WAIT_S:.0f} s "
                    f"({type(exc).__name__}). Start it and retry the job."
                ) from exc
            time.sleep(2)
        else:
            get_run_logger().info("training of %d jobs runs as flow run %s", len(job_ids), run.id)
            return run.id


@task(task_run_name="prepare-{job_id}", cache_policy=NO_CACHE)
def prepare_job(job_id: str) -> bool:
    """Take one job of a cohort up and prepare its data; False when it has no part in this run any more."""
    try:
        take_up(job_id)
    except InvalidTransition as exc:
        get_run_logger().info("%s", exc)
        return False
    with ending(job_id):
        prepare_data(job_id)
        return True
    return False


@task(task_run_name="finish-{ended.job_id}", cache_policy=NO_CACHE)
def finish_job(ended: Ended) -> dict[str, Any]:
    """Judge, publish and activate one trained job of a cohort, or end it as what stopped it."""
    job_id = ended.job_id
    with ending(job_id):
        raise_what_stopped(ended)
        write_outputs(job_id)
        decision = evaluate_adapter(job_id)
        if decision.outcome is Outcome.PROMOTED:
            publish_adapter(job_id)
            write_samples(job_id)
        else:
            withdraw_adapter(job_id)
        activate(job_id, decision)
    return jobs.find_job(database(), job_id).to_json_dict()


def end_all(job_ids: Sequence[str], error: Exception) -> None:
    """End every job of a cohort as what stopped the cohort itself."""
    for job_id in job_ids:
        with ending(job_id):
            raise error


def _is_over(job_id: str) -> bool:
    """Tell whether a job needs no training: it has its adapter already, or somebody stopped it."""
    return is_measured(job_folder(job_id)) or jobs.is_cancel_requested(database(), job_id)


def _write_spec(job: Job, folder: JobFolder) -> None:
    current = jobs.current_adapter(database(), job.user_id)
    usable = (
        current is not None
        and current.base_model == job.base_model
        and job_folder(current.id).exists(ADAPTER)
    )
    current_id = current.id if current is not None and usable else None
    folder.write_json(
        SPEC,
        JobSpec(
            job_id=job.id,
            base_model=job.base_model,
            version=job.version,
            train_config=job.config,
            current_adapter=current_id,
            # Set when the data set was made: it decided for the adapter that was in use then.
            start_adapter=job.incremental_from if job.config.get("mode") == RetrainMode.INCREMENTAL else None,
        ).to_json_dict(),
    )
