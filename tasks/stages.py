"""The job row around each stage: entered, timed, checked for cancellation, ended. CPU side only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prefect import get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Cancelled

from store import dispatch, jobs, users
from tasks.job_folder import (
    CANCEL,
    CHECKPOINT,
    DATASET,
    HELD_OUT,
    LEARNT,
    OLD_HELD_OUT,
    OUTPUTS,
    PANEL,
    PROGRESS,
)
from tasks.progress import show_progress
from tasks.tools import changing_models, database, job_folder, serving, settings
from training.base_models import find_base_model
from training.config import load_train_config
from training.errors import InvalidTransition, NoConsent, OwnvoiceError, TrainingCancelled
from training.schemas import EventLevel, Job, JobStatus, Stage, Trigger

TAKE_BACK_S = 30.0
"""How long a cancelled job waits for its turn to remove its name from the Ollama server."""


@task(cache_policy=NO_CACHE)
def claim_job(
    user_id: str, job_id: str | None, config: str | None, trigger: Trigger, idempotency_key: str | None
) -> Job:
    """Take up the waiting job `job_id`, or make one, for this flow run.

    A flow run that Prefect runs again ("Retry" on its page) takes its failed job up again. Raises
    JobAlreadyActive, NoConsent, UnknownUser, UnknownJob, and InvalidTransition when the job has ended or
    another flow run is at work on it.
    """
    db = database()
    user = users.find_user(db, user_id)
    flow_run = str(runtime.flow_run.id)
    mine = dispatch.jobs_of_run(db, flow_run)
    if mine:
        job = mine[-1]
        if job.status is JobStatus.FAILED:
            job = jobs.requeue_job(db, job.id, claimed=True)
    elif job_id is not None:
        job = jobs.find_job(db, job_id)
    else:
        job = _make_job(user.id, config, trigger, idempotency_key)
    if job.user_id != user.id:
        raise InvalidTransition(f"Job {job.id} does not belong to user {user.id}.")
    return take_up(job.id)


def take_up(job_id: str) -> Job:
    """Make this flow run the one that works on the job. Raises InvalidTransition, UnknownJob."""
    job = dispatch.take_up(database(), job_id, str(runtime.flow_run.id))
    get_run_logger().info("job %s, version %s, on %s", job.id, job.version, job.base_model)
    return job


def _make_job(user_id: str, config: str | None, trigger: Trigger, idempotency_key: str | None) -> Job:
    require_consent(user_id)
    chosen = load_train_config(config or settings().train_config)
    base = find_base_model(chosen.base_model or settings().base_model)
    return jobs.create_job(
        database(),
        user_id,
        base_model=base.id,
        config=chosen.model_dump(mode="json"),
        lora_rank=chosen.lora.rank,
        lora_alpha=chosen.lora.alpha,
        trigger=trigger,
        idempotency_key=idempotency_key,
        claimed=True,
    )


def require_consent(user_id: str) -> None:
    """Raise NoConsent unless the user agreed and has not withdrawn."""
    user = users.find_user(database(), user_id)
    if user.voice_consent_at is None:
        raise NoConsent(
            f"User {user.id} has not agreed to voice training. "
            "Record the consent in the app, or with `ownvoice import … --consent`."
        )


@contextmanager
def stage(job_id: str, entered: Stage) -> Iterator[Job]:
    """Enter a stage in the job row, time it, and refuse to start it for a cancelled job."""
    stop_if_cancelled(job_id)
    job = jobs.enter_stage(database(), job_id, entered)
    show_progress(job, f"{entered}")
    with _timed(job, entered):
        yield job


@contextmanager
def still_in(job_id: str, entered: Stage) -> Iterator[Job]:
    """Go on in a stage that another task entered: timed with it, and refused for a cancelled job."""
    stop_if_cancelled(job_id)
    job = jobs.find_job(database(), job_id)
    with _timed(job, entered):
        yield job


@contextmanager
def _timed(job: Job, entered: Stage) -> Iterator[None]:
    """Record the stage's seconds; what several tasks or attempts spend in it adds up."""
    started = time.monotonic()
    try:
        yield
    finally:
        seconds = job.timings.get(entered.value, 0) + time.monotonic() - started
        with suppress(OwnvoiceError):
            jobs.record(database(), job.id, timings={entered.value: round(seconds, 2)})


def stop_if_cancelled(job_id: str) -> None:
    """Raise TrainingCancelled when somebody asked for it."""
    if jobs.is_cancel_requested(database(), job_id):
        raise TrainingCancelled(f"Job {job_id} was cancelled.")


@contextmanager
def ending(job_id: str) -> Iterator[None]:
    """Let whatever stops the job end it, and it alone: CANCELLED or FAILED, its neighbours go on."""
    try:
        yield
    except TrainingCancelled:
        end_cancelled(job_id)
    except Exception as error:
        get_run_logger().error("job %s: %s", job_id, _sentence(error))
        end_failed(job_id, error)


def end_cancelled(job_id: str) -> State[None]:
    """End a cancelled job: nothing stays published, the workspace is deleted, the row says CANCELLED.

    Returns Prefect's own Cancelled state for the flow to end with.
    """
    db = database()
    job = jobs.find_job(db, job_id)
    folder = job_folder(job_id)
    # The marker first: a training process that still runs stops at its next step.
    folder.write_text(CANCEL, "")
    take_back(job)
    folder.remove_all()
    if not job.status.is_final:
        jobs.mark_cancelled(db, job_id)
    return Cancelled(message=f"Job {job_id} was cancelled.")


def end_failed(job_id: str, error: Exception) -> None:
    """Write the failure into the row: a code and a sentence. The job folder stays for `retry`.

    What was put into the engine to be judged is taken out again: a retry puts it back in a second.
    """
    code = error.code if isinstance(error, OwnvoiceError) else "INTERNAL"
    if jobs.fail_job(database(), job_id, code, _sentence(error)):  # else it has ended, and may be served
        take_back(jobs.find_job(database(), job_id))


def _sentence(error: Exception) -> str:
    if isinstance(error, OwnvoiceError):
        return str(error)
    return f"An unexpected {type(error).__name__} stopped the job; retry it, and report it if it stays."


def take_back(job: Job) -> None:
    """Remove the serving name of a job that must not serve; a dead server is noted in the event stream.

    The row keeps a name that could not be removed: erasing the person finds it there.
    """
    if job.model_name is None:
        return
    try:
        with serving(job.base_model) as engine, changing_models(TAKE_BACK_S):
            engine.remove(job.model_name)
        jobs.record(database(), job.id, model_name=None)
    except OwnvoiceError as exc:
        jobs.add_event(
            database(),
            job.id,
            f"{job.model_name} could not be removed from the serving engine: {exc.code}",
            level=EventLevel.WARN,
        )


def forget_mail(job_id: str) -> None:
    """Delete what holds mail text, once the job no longer needs it; adapter, report and numbers stay."""
    job_folder(job_id).remove(DATASET, HELD_OUT, OLD_HELD_OUT, LEARNT, OUTPUTS, PANEL, CHECKPOINT, PROGRESS)
