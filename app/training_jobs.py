"""Starting, following, cancelling and retrying jobs: what the command line and the web API both do."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from app.orchestrator import Orchestrator
from app.session import Session
from store import dispatch, jobs, users
from training.base_models import find_base_model
from training.config import load_train_config
from training.errors import ConfigError, NoConsent, OrchestratorUnavailable, OwnvoiceError
from training.schemas import Job, JobEvent, JobStatus, RetrainMode, Trigger

DEPLOYMENT = "train-user/default"
POLL_S = 0.5
VANISHED_S = 180.0
"""How long after its flow run has ended a job may still look active: hooks run in a new process, and
dispatch-jobs, which looks every minute, queues again what they missed."""
CANCEL_WAIT_S = 30.0


def start_job(
    session: Session,
    id_or_email: str,
    *,
    config: str | None = None,
    mode: RetrainMode | None = None,
    idempotency_key: str | None = None,
) -> Job:
    """Make a job for a user and start its flow run. `mode` replaces the preset's own.

    Raises UnknownUser, NoConsent, ConfigError, JobAlreadyActive, OrchestratorUnavailable; after the last
    the job is FAILED and can be retried.
    """
    user = users.find_user(session.db, id_or_email)
    if user.voice_consent_at is None:
        raise NoConsent(
            f"{user.email} has not agreed to voice training. Record the consent in the app, or import "
            "the mailbox with --consent."
        )
    chosen = load_train_config(config or session.settings.train_config, {"mode": mode} if mode else None)
    base = find_base_model(session.settings.base_model)
    if chosen.base_model not in (None, base.id):
        raise ConfigError(
            f"The preset {chosen.name} is made for {chosen.base_model}, but OWNVOICE_BASE_MODEL is "
            f"{base.id}. Choose another preset or base model."
        )
    orchestrator = session.orchestrator
    job = jobs.create_job(
        session.db,
        user.id,
        base_model=base.id,
        config=chosen.model_dump(mode="json"),
        lora_rank=chosen.lora.rank,
        lora_alpha=chosen.lora.alpha,
        trigger=Trigger.MANUAL,
        idempotency_key=idempotency_key,
        claimed=True,
    )
    if job.status is JobStatus.PENDING and job.flow_run_id is None:
        job = _start_run(session, orchestrator, job, attempt="first")
    return job


def retry_job(session: Session, job_id: str) -> Job:
    """Take a FAILED job up again from its last finished stage."""
    orchestrator = session.orchestrator
    job = jobs.requeue_job(session.db, jobs.find_job(session.db, job_id).id, claimed=True)
    return _start_run(session, orchestrator, job, attempt=f"retry-{time.time_ns()}")


def cancel_job(session: Session, job_id: str, wait_s: float = CANCEL_WAIT_S) -> Job:
    """Ask a job to stop and wait until it has ended, at most `wait_s` seconds.

    Raises InvalidTransition when the job has ended already.
    """
    job = jobs.request_cancel(session.db, jobs.find_job(session.db, job_id).id)
    if job.status is JobStatus.PENDING and job.stage is None:
        # No stage has begun: nothing has to be stopped but a flow run that may be waiting for a worker.
        # A retried job goes the other way: its flow deletes what the earlier attempt left.
        job = jobs.mark_cancelled(session.db, job.id)
        if job.flow_run_id is not None:
            # A run that cannot be told finds the job cancelled when it starts, and leaves it alone.
            with suppress(OrchestratorUnavailable, ConfigError):
                session.orchestrator.cancel_run(job.flow_run_id)
        return job
    if job.flow_run_id is None:
        # It waits again after a lost run: the dispatcher deletes what that left, now or within the minute.
        with suppress(OrchestratorUnavailable, ConfigError):
            session.orchestrator.wake_dispatcher()
    deadline = time.monotonic() + wait_s
    while not job.status.is_final and time.monotonic() < deadline:
        time.sleep(POLL_S)
        job = jobs.find_job(session.db, job.id)
    return job


def follow_job(session: Session, job_id: str, on_change: Callable[[Job, list[JobEvent]], None]) -> Job:
    """Report a job's row and new events until it has ended; returns the final job.

    A job whose flow run ended without a word (its worker's machine was lost) is ended here as FAILED.
    """
    seen: datetime | None = None
    ended_at: float | None = None
    asked = 0.0
    while True:
        job = jobs.find_job(session.db, job_id)
        events = jobs.events(session.db, job_id, after=seen)
        seen = events[-1].at if events else seen
        on_change(job, events)
        if job.status.is_final:
            return job
        now = time.monotonic()
        if job.flow_run_id is not None and now - asked > 3:
            asked = now
            ended_at = _ended_since(session, job, ended_at)
            if ended_at is not None and now - ended_at > VANISHED_S:
                jobs.fail_job(
                    session.db,
                    job.id,
                    "FLOW_VANISHED",
                    f"The flow run of the job ended without a result. Run `ownvoice retry {job.id}`.",
                )
        time.sleep(POLL_S)


def _ended_since(session: Session, job: Job, before: float | None) -> float | None:
    """Return when the flow run was first seen ended, or None; an unreachable server says nothing."""
    try:
        state = session.orchestrator.run_state(str(job.flow_run_id))
    except OwnvoiceError:
        return before
    return (before or time.monotonic()) if state.is_final else None


def _start_run(session: Session, orchestrator: Orchestrator, job: Job, *, attempt: str) -> Job:
    try:
        run_id = orchestrator.start_run(
            DEPLOYMENT,
            {"user_id": job.user_id, "job_id": job.id},
            idempotency_key=f"{job.id}:{attempt}",
            tags=[f"user:{job.user_id}"],
        )
    except OwnvoiceError as exc:
        jobs.fail_job(session.db, job.id, exc.code, f"The job could not be started: {exc}")
        raise
    dispatch.bind_run(session.db, [job.id], run_id)
    return jobs.find_job(session.db, job.id)
