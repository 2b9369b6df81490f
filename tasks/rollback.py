"""Going back to an earlier adapter: chosen, proven once more on the engine, made active. CPU side."""

from __future__ import annotations

from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from serving.adapter_file import file_digest
from serving.base import Serving, adapter_name
from store import jobs, users
from tasks.job_folder import ADAPTER_GGUF, RECIPE, JobFolder
from tasks.publish import SERVING_DELAYS, serving_is_away
from tasks.stages import require_consent
from tasks.tools import changing_models, database, job_folder, serving, settings
from training.dataset import ChatTemplate
from training.errors import AdapterRefused, InvalidTransition, ServingError
from training.schemas import Job, Outcome, RollbackResult

MOST_JOBS = 10_000
"""More than one person can have: a training takes minutes."""


@task(cache_policy=NO_CACHE)
def choose_version(user_id: str, version: int | None) -> Job:
    """Return the promoted job of `version`, or of the newest promoted version older than the active one.

    Raises UnknownUser, NoConsent, and InvalidTransition when there is nothing to go back to.
    """
    db = database()
    user = users.find_user(db, user_id)
    require_consent(user.id)
    active = jobs.current_adapter(db, user.id)
    if active is None:
        raise InvalidTransition(f"User {user.id} has no active adapter; there is nothing to go back from.")
    own = jobs.list_jobs(db, user.id, limit=MOST_JOBS)
    promoted = {job.version: job for job in own if job.outcome is Outcome.PROMOTED}
    older = [found for found in promoted if found < active.version]
    wanted = version if version is not None else max(older, default=None)
    if wanted is None:
        raise InvalidTransition(
            f"Version {active.version} is the oldest promoted version of user {user.id}; "
            "there is none to go back to."
        )
    if wanted == active.version:
        raise InvalidTransition(f"Version {wanted} of user {user.id} is active already; nothing was changed.")
    if wanted not in promoted:
        known = ", ".join(str(found) for found in sorted(promoted))
        raise InvalidTransition(
            f"Version {wanted} of user {user.id} was never promoted. Promoted versions: {known}."
        )
    return promoted[wanted]


@task(
    # As for publishing: the engine may be restarting.
    retries=len(SERVING_DELAYS),
    retry_delay_seconds=SERVING_DELAYS,
    retry_condition_fn=serving_is_away,
    cache_policy=NO_CACHE,
)
def verify_version(job_id: str) -> str:
    """Prove that the engine serves the job's adapter, publishing it again when it does not; return the name.

    Raises ServingUnavailable (after the retries), ServingError, AdapterRefused.
    """
    job, folder = jobs.find_job(database(), job_id), job_folder(job_id)
    name = job.model_name or adapter_name(job.user_id, job.version)
    template = _template(folder)
    with serving(job.base_model, expected_prompt=template.render_for_server if template else None) as engine:
        engine.base_ready()
        if not _serves(engine, name, str(job.adapter_digest)):
            get_run_logger().info("%s is not served as it was; publishing it again", name)
            _publish_again(engine, job, folder, name)
    get_run_logger().info("verified %s", name)
    return name


@task(cache_policy=NO_CACHE)
def activate_version(job_id: str, name: str) -> RollbackResult:
    """Point the user at the proven version: one transaction with its event and webhook.

    Raises NoConsent when it was withdrawn meanwhile.
    """
    db = database()
    job = jobs.find_job(db, job_id)
    before, old = jobs.current_adapter(db, job.user_id), users.find_user(db, job.user_id)
    jobs.activate_version(db, job_id, ai_provider=settings().engine, ai_model=name)
    return RollbackResult(
        user_id=job.user_id,
        job_id=job.id,
        old_version=before.version if before else 0,
        old_model=old.ai_model or "",
        new_version=job.version,
        new_model=name,
    )


def _serves(engine: Serving, name: str, digest: str) -> bool:
    if name not in {model.name for model in engine.list()}:
        return False
    try:
        engine.verify(name, digest)
    except ServingError as exc:
        # A file that was damaged there may be whole in storage; what cannot be mended is refused again.
        get_run_logger().warning("%s", exc)
        return False
    return True


def _publish_again(engine: Serving, job: Job, folder: JobFolder, name: str) -> None:
    if not folder.exists(ADAPTER_GGUF):
        raise AdapterRefused(
            f"Version {job.version} of user {job.user_id} is neither on the serving engine nor in storage: "
            "it cannot come back. Choose another version, or train again."
        )
    with folder.workspace() as workspace:
        _require_same(workspace / ADAPTER_GGUF, job)
        with changing_models():
            published = engine.publish(workspace / ADAPTER_GGUF, name)
        engine.verify(name, published.digest)


def _require_same(adapter: Path, job: Job) -> None:
    found = file_digest(adapter)
    if found != job.adapter_digest:
        raise AdapterRefused(
            f"The stored adapter of version {job.version} is not the one that was promoted ({found[:19]}…, "
            f"not {str(job.adapter_digest)[:19]}…). Choose another version, or train again."
        )


def _template(folder: JobFolder) -> ChatTemplate | None:
    """Return the template that training used; None when the folder is gone: only weights are proven then."""
    if not folder.exists(RECIPE):
        return None
    return ChatTemplate.model_validate(folder.read_json(RECIPE)["chatTemplate"])
