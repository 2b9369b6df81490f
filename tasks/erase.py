"""Erasing a person, step by step; each finds by itself what is left, so all can be repeated. CPU side."""

from __future__ import annotations

import re
import shutil
import time
from contextlib import suppress

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from serving.adapter_folder import AdapterFolder
from serving.base import voice_name
from serving.erasure import ADAPTER, BLOB, erase_from_folder, erase_from_ollama
from serving.ollama import OllamaServing
from store import jobs, users
from store.erase import erase_rows
from store.users import is_address
from tasks import receipts
from tasks.answer_cache import remove_answers
from tasks.following import stop_if_training
from tasks.job_folder import JobFolder
from tasks.prefect_records import cancel_run, is_alive, remove_records
from tasks.publish import SERVING_DELAYS, serving_is_away
from tasks.stages import end_cancelled
from tasks.tools import changing_models, database, settings
from training.base_models import find_base_model
from training.errors import (
    ConfigError,
    InvalidTransition,
    ServingError,
    ServingUnavailable,
    StorageError,
    UnknownUser,
)
from training.schemas import EraseItem, EraseReceipt, EraseResult, Job, JobStatus

FOLDER = "job folder"
ANSWERS = "instructions"
REPORTS = "reports"
MOST_JOBS = 10_000
POLL_S = 0.5
GRACE_S = 20.0
"""How long a job may take to see that it was cancelled before its flow run is cancelled as well."""
RUN_ENDED_S = 15.0
"""How long after its flow run has ended, or was never found, a job may still end by itself (hooks)."""
CANCEL_S = 90.0
"""How long the erasure waits for a job in all; then it is ended here."""


@task(cache_policy=NO_CACHE)
def begin_erasure(user_id: str, keep_mail: bool) -> str:
    """Withdraw the consent, so that nothing new starts, and open the receipt; return its name.

    An id without a row is fine: the row goes last, and this may be the second time. Raises ConfigError for
    a mail address, StorageError.
    """
    if is_address(user_id):
        raise ConfigError(
            "Give the user's id, not the mail address: Prefect keeps the parameters of a run. "
            "`ownvoice erase ADDRESS` looks the id up."
        )
    with suppress(UnknownUser):
        users.withdraw_consent(database(), user_id)
    receipt = receipts.open_receipt(settings().storage, user_id, keep_mail)
    get_run_logger().info("receipt %s", receipt)
    return receipt


@task(cache_policy=NO_CACHE)
def stop_jobs(user_id: str) -> None:
    """Cancel the person's unfinished jobs and wait until they have ended."""
    unfinished = [job for job in _jobs_of(user_id) if not job.status.is_final]
    for job in unfinished:
        _end_job(job)
    get_run_logger().info("%d unfinished jobs ended", len(unfinished))


@task(
    # As for publishing: the engine may be restarting.
    retries=len(SERVING_DELAYS),
    retry_delay_seconds=SERVING_DELAYS,
    retry_condition_fn=serving_is_away,
    cache_policy=NO_CACHE,
)
def remove_adapters(user_id: str, receipt: str) -> None:
    """Remove the person's adapters from every configured engine, not only the one in use.

    Raises ServingUnavailable (after the retries) or ServingError with what is left; no row is gone then.
    """
    found = _jobs_of(user_id)
    digests = {job.adapter_digest for job in found if job.adapter_digest}
    if settings().adapters.is_dir():
        _note(receipt, erase_from_folder(AdapterFolder(settings().adapters), user_id, digests))
    if settings().ollama_base_url:
        try:
            _note(receipt, _erase_from_ollama(user_id, digests))
        except (ServingUnavailable, ServingError) as exc:
            raise type(exc)(
                f"{exc} Left: the adapters on that server, {len(found)} job folders and all rows of user "
                f"{user_id}. When it answers, run `ownvoice erase {user_id}` again."
            ) from exc


@task(cache_policy=NO_CACHE)
def remove_job_folders(user_id: str, receipt: str) -> None:
    """Delete the folders of all the person's jobs from storage. Raises StorageError."""
    items = [_remove_folder(job, storage) for job in _jobs_of(user_id) for storage in _storages_of(job)]
    _note(receipt, items)
    get_run_logger().info("%d job folders", len(items))


@task(cache_policy=NO_CACHE)
def remove_instructions(user_id: str, receipt: str) -> None:
    """Delete what the base answered about the person's mails, wherever their jobs kept it.

    After the jobs have ended: one that is at work would write it again. Raises StorageError.
    """
    storages = dict.fromkeys(
        [settings().storage, *(s for job in _jobs_of(user_id) for s in _storages_of(job))]
    )
    for storage in storages:
        was_there = remove_answers(storage, user_id)
        item = EraseItem(
            kind=ANSWERS,
            name="of training mail",
            where=_where(storage),
            result=EraseResult.REMOVED if was_there else EraseResult.ABSENT,
            verified="1 file deleted, 0 left" if was_there else "no such file",
        )
        _note(receipt, [item])


@task(cache_policy=NO_CACHE)
def remove_reports(user_id: str, receipt: str) -> None:
    """Delete the pages of `ownvoice compare` on this machine: they hold what models wrote in their voice.

    A page that was written elsewhere (`--html`) is in the hands of who asked for it. Raises StorageError.
    """
    folder = settings().reports / voice_name(user_id)
    pages = sum(path.is_file() for path in folder.rglob("*"))
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as exc:
        raise StorageError(
            f"The reports of user {user_id} in {folder} could not be deleted ({exc.strerror}). "
            f"Free the folder and run `ownvoice erase {user_id}` again."
        ) from exc
    item = EraseItem(
        kind=REPORTS,
        name="of ownvoice compare",
        where="home",
        result=EraseResult.REMOVED if pages else EraseResult.ABSENT,
        verified=f"{pages} files deleted, folder gone" if pages else "no such file",
    )
    _note(receipt, [item])


@task(cache_policy=NO_CACHE)
def remove_prefect_records(user_id: str, receipt: str) -> None:
    """Delete flow runs and artifacts of the person's jobs, as far as Prefect allows and answers."""
    # A run that was started with the address carries it in its name, spelt as it was typed.
    addresses = set(users.addresses(database(), user_id))
    with suppress(UnknownUser):
        addresses.add(users.find_user(database(), user_id).email)
    _note(receipt, remove_records(user_id, addresses, _jobs_of(user_id)))


@task(cache_policy=NO_CACHE)
def remove_rows(user_id: str, receipt: str, keep_mail: bool) -> None:
    """Delete the person's rows: last, because everything before is found through them.

    Raises JobAlreadyActive when a job of theirs appeared that no step has seen.
    """
    read = read_receipt(receipt)
    erased = {item.name for item in read.items if item.kind == FOLDER}
    _note(receipt, erase_rows(database(), user_id, erased, keep_mail=keep_mail))


@task(cache_policy=NO_CACHE)
def finish_receipt(receipt: str) -> EraseReceipt:
    """Close the receipt and show it in Prefect's UI."""
    items = read_receipt(receipt).items
    left = [item for item in items if item.result is EraseResult.KEPT and item.kind in (ADAPTER, BLOB)]
    closed = receipts.close_receipt(settings().storage, receipt, complete=not left)
    create_table_artifact(
        table=[item.to_json_dict() for item in closed.items],
        # Prefect's keys: lower case, digits and dashes.
        key=f"erase-{re.sub('[^a-z0-9]+', '-', closed.user_id.lower()).strip('-')}",
        description=f"Erasure of user {closed.user_id}: {'complete' if closed.complete else 'not complete'}",
    )
    return closed


def read_receipt(receipt: str) -> EraseReceipt:
    return receipts.read_receipt(settings().storage, receipt)


def _note(receipt: str, items: list[EraseItem]) -> None:
    receipts.add_items(settings().storage, receipt, items)


def _jobs_of(user_id: str) -> list[Job]:
    return jobs.list_jobs(database(), user_id, limit=MOST_JOBS)


def _end_job(job: Job) -> None:
    """Ask the job to stop, then its flow run; end it here when neither does."""
    db = database()
    with suppress(InvalidTransition):  # it ended meanwhile
        job = jobs.request_cancel(db, job.id)
    asked, told = time.monotonic(), False
    while not job.status.is_final:
        waited = time.monotonic() - asked
        alive = is_alive(job.flow_run_id)
        # A waiting job has nobody at work that could end it; its run finds it ended.
        if job.status is JobStatus.PENDING or waited > (CANCEL_S if alive else RUN_ENDED_S):
            _end_here(job)
            return
        if alive and waited > GRACE_S and not told:
            cancel_run(job.flow_run_id, job.id)
            told = True
        time.sleep(POLL_S)
        job = jobs.find_job(db, job.id)


def _end_here(job: Job) -> None:
    cancel_run(job.flow_run_id, job.id)
    stop_if_training(job)  # at work it would write into the folder that is deleted next
    with suppress(InvalidTransition):
        end_cancelled(job.id)


def _erase_from_ollama(user_id: str, digests: set[str]) -> list[EraseItem]:
    base = find_base_model(settings().base_model)
    engine = OllamaServing(
        str(settings().ollama_base_url),
        settings().ollama_base or base.ollama_name,
        architecture=base.architecture,
        num_ctx=base.context_tokens,
    )
    try:
        with changing_models():
            return erase_from_ollama(engine, user_id, digests)
    finally:
        engine.close()


def _storages_of(job: Job) -> list[str]:
    """Return where the job's folder may be: the storage of today, and the one that its adapter was put in."""
    known = [settings().storage]
    root, between, rest = (job.adapter_path or "").rpartition("/jobs/")
    if between and rest.partition("/")[0] == job.id and root.rstrip("/") != known[0].rstrip("/"):
        known.append(root)
    return known


def _remove_folder(job: Job, storage: str) -> EraseItem:
    folder = JobFolder(storage, job.id)
    files = folder.files()
    folder.remove_all()
    return EraseItem(
        kind=FOLDER,
        name=job.id,
        where=_where(storage),
        result=EraseResult.REMOVED if files else EraseResult.ABSENT,
        verified=f"{files} files deleted, {folder.files()} left" if files else "no such folder",
    )


def _where(storage: str) -> str:
    return "storage" if storage == settings().storage else "earlier storage"
