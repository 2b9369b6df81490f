"""Erasing a person: all of theirs in every place, nothing of anybody else's, and again after a crash."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from app.compare_page import default_path
from serving.adapter_folder import AdapterFolder
from store import dispatch, jobs, users
from store.database import Database
from store.erase import count_rows, erase_rows
from tasks import tools
from tasks.answer_cache import AnswerCache, open_answers
from tasks.job_folder import JobFolder
from tests.adapters import smollm2_gguf, write_adapter
from tests.ollama_server import OllamaServer
from tests.voices import (
    OLLAMA_BASE,
    at_the_gate,
    new_job,
    ollama_holds,
    ollama_names,
    promote,
    put_in_folder,
    put_on_ollama,
    upload_to_ollama,
)
from training.errors import ConfigError, JobAlreadyActive, ServingUnavailable, StorageError
from training.schemas import EraseReceipt, EraseResult, Generated, Job, JobStatus, Stage, User

pytestmark = pytest.mark.usefixtures("prefect")
ADDRESS = "ann@example.net"
STEPS = (
    "stop_jobs",
    "remove_adapters",
    "remove_job_folders",
    "remove_instructions",
    "remove_reports",
    "remove_prefect_records",
    "remove_rows",
)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three different adapter files, small ones: nobody generates with them here."""
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(folder / f"{seed}.gguf", seed=seed, layers=1) for seed in (1, 2, 3)]


@pytest.fixture
def ollama(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaServer]:
    """A server beside the embedded engine's folder: both are configured."""
    from tasks.erase import remove_adapters

    with OllamaServer(tmp_path / "ollama") as server:
        server.preload_base(OLLAMA_BASE, smollm2_gguf())
        monkeypatch.setenv("OLLAMA_BASE_URL", server.url)
        tools.settings.cache_clear()
        monkeypatch.setattr(remove_adapters, "retries", 0)
        yield server


class Voice(NamedTuple):
    """A person with mail, a promoted version in both engines and a failed job."""

    user: User
    promoted: Job
    failed: Job
    digest: str


def give_voice(db: Database, home: Path, ollama: OllamaServer, user_id: str, adapter: Path) -> Voice:
    user = users.create_user(db, f"{user_id}@example.net", user_id=user_id, consent=True)
    add_mail(db, user, 3)
    job = at_the_gate(db, user, adapter)
    name = f"emailai-{user_id}:v1"
    put_in_folder(home / "adapters", name, adapter)
    digest = put_on_ollama(ollama.url, name, adapter)
    promoted = promote(db, user, job, "ollama")
    failed = new_job(db, user)
    jobs.fail_job(db, failed.id, "X", "x")
    with open_answers(tools.settings().storage, user_id) as answers:
        answers.keep("k", Generated(text="Write an email to ask for the lighthouse keys.", stopped=True))
    page = default_path(home / "reports", user_id, datetime(2026, 3, 1))
    page.parent.mkdir(parents=True)
    page.write_text("what a model wrote")
    return Voice(user, promoted, failed, digest)


def add_mail(db: Database, user: User, count: int) -> None:
    account = users.ensure_account(db, user)
    with db.connection() as connection:
        for number in range(count):
            connection.execute(
                """
                INSERT INTO "EmailMessage" ("id", "emailAccountId", "threadId", "messageId", "isSent")
                VALUES (%s, %s, 't', %s, true)
                """,
                (f"{user.id}-{number}", account, f"<{number}@{user.id}>"),
            )


@pytest.fixture
def ann(db: Database, home: Path, ollama: OllamaServer, adapters: list[Path]) -> Voice:
    return give_voice(db, home, ollama, "ann", adapters[0])


@pytest.fixture
def anna(db: Database, home: Path, ollama: OllamaServer, adapters: list[Path]) -> Voice:
    """Somebody else, whose id begins with ann's."""
    return give_voice(db, home, ollama, "anna", adapters[1])


def erase(user_id: str = "ann", **parameters: Any) -> EraseReceipt:
    from flows.erase_user import erase_user

    return EraseReceipt.model_validate(erase_user(user_id, **parameters))


def results(receipt: EraseReceipt) -> dict[str, EraseResult]:
    return {f"{item.kind} {item.name} {item.where.split()[0]}": item.result for item in receipt.items}


def state_of(voice: Voice, db: Database, home: Path, ollama: OllamaServer) -> dict[str, Any]:
    """Return all that can be seen of a person, everywhere."""
    prefix = f"emailai-{voice.user.id}:"
    return {
        "rows": count_rows(db, voice.user.id),
        "folder": [n for n in AdapterFolder(home / "adapters").names() if n.startswith(prefix)],
        "ollama": [n for n in ollama_names(ollama.url) if n.startswith(prefix)],
        "blob": ollama_holds(ollama.url, voice.digest),
        "job folder": tools.job_folder(voice.promoted.id).files(),
        "instructions": len(AnswerCache(tools.settings().storage, voice.user.id)),
        "reports": len(list((home / "reports" / f"emailai-{voice.user.id}").glob("*.html"))),
        "events": len(jobs.events(db, voice.promoted.id)),
    }


def _count(db: Database, table: str) -> int:
    from psycopg import sql

    with db.connection() as connection:
        query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
        row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


NOTHING = {
    "rows": (0, 0, 0, 0),
    "folder": [],
    "ollama": [],
    "blob": False,
    "job folder": 0,
    "instructions": 0,
    "reports": 0,
    "events": 0,
}


# ---- everything, and nothing else --------------------------------------------------------------------


def test_erasure_removes_a_person_everywhere_and_says_how_that_was_seen(
    ann: Voice, db: Database, home: Path, ollama: OllamaServer
) -> None:
    receipt = erase()
    assert receipt.complete and receipt.finished_at is not None
    assert state_of(ann, db, home, ollama) == NOTHING
    found = results(receipt)
    for thing in (
        "adapter emailai-ann:v1 llamacpp",
        "adapter emailai-ann:v1 ollama",
        f"blob {ann.digest} ollama",
        f"job folder {ann.promoted.id} storage",
        "instructions of training mail storage",
        "reports of ownvoice compare home",
        'rows "FineTuningJob" database',
        'rows "EmailMessage" database',
        'rows "User" database',
    ):
        assert found[thing] is EraseResult.REMOVED, thing
    assert found[f"job folder {ann.failed.id} storage"] is EraseResult.ABSENT
    assert all(item.verified for item in receipt.items)
    assert [_count(db, table) for table in ("FineTuningEvent", "Outbox", "MailCount")] == [0, 0, 0]


def test_receipt_is_kept_for_the_owner_alone_and_names_no_address(ann: Voice, home: Path) -> None:
    receipt = erase()
    (file,) = (home / "storage" / "receipts").iterdir()
    assert file.name.startswith("ann-2")
    assert EraseReceipt.model_validate_json(file.read_text()) == receipt
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700 and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "@" not in file.read_text()

    from prefect.artifacts import Artifact

    artifact = Artifact.get("erase-ann")
    assert artifact is not None and "@" not in str(artifact.data)
    assert len(json.loads(str(artifact.data))) == len(receipt.items)


def test_another_person_with_a_similar_id_on_the_same_engines_keeps_everything(
    ann: Voice, anna: Voice, db: Database, home: Path, ollama: OllamaServer
) -> None:
    before = state_of(anna, db, home, ollama)
    user = users.find_user(db, "anna")
    erase()
    assert state_of(anna, db, home, ollama) == before
    assert users.find_user(db, "anna") == user
    assert OLLAMA_BASE in ollama_names(ollama.url)


def test_leftovers_that_no_row_tells_of_go_too(
    ann: Voice, db: Database, home: Path, ollama: OllamaServer, adapters: list[Path]
) -> None:
    folder = AdapterFolder(home / "adapters")
    put_in_folder(home / "adapters", "emailai-ann:v7", adapters[2])
    folder.file("emailai-ann:v8").write_bytes(b"a file without its manifest")
    (home / "adapters" / "emailai-ann:v9.json").write_text("damaged")
    (home / "adapters" / ".staged-killed.gguf").write_bytes(adapters[0].read_bytes())
    put_on_ollama(ollama.url, "emailai-ann:v7", adapters[2])
    assert erase().complete
    assert folder.names() == [] and list((home / "adapters").glob(".staged-*")) == []
    assert ollama_names(ollama.url) == [OLLAMA_BASE]


def test_upload_that_never_became_a_model_is_deleted_from_the_server(
    ann: Voice, db: Database, ollama: OllamaServer, adapters: list[Path]
) -> None:
    digest = upload_to_ollama(ollama.url, adapters[2])
    jobs.record(db, ann.failed.id, adapter_digest=digest)
    receipt = erase()
    assert not ollama_holds(ollama.url, digest)
    assert results(receipt)[f"blob {digest} ollama"] is EraseResult.REMOVED
    assert ollama_names(ollama.url) == [OLLAMA_BASE]


def test_adapter_that_another_model_refers_to_stays_and_the_receipt_says_so(
    ann: Voice, ollama: OllamaServer, adapters: list[Path]
) -> None:
    put_on_ollama(ollama.url, "copy-of-somebody:v1", adapters[0])
    receipt = erase()
    (blob,) = [item for item in receipt.items if item.kind == "blob"]
    assert blob.result is EraseResult.KEPT and "copy-of-somebody:v1" in blob.verified
    assert not receipt.complete


def test_keep_mail_takes_the_voice_alone(ann: Voice, db: Database, home: Path, ollama: OllamaServer) -> None:
    receipt = erase(keep_mail=True)
    assert receipt.complete
    assert count_rows(db, "ann") == (1, 3, 0, 0)
    user = users.find_user(db, "ann")
    assert (user.ai_model, user.lora_adapter_id, user.voice_consent_at) == (None, None, None)
    assert user.adapter_training_count == 0
    assert results(receipt)["rows mail, accounts and user database"] is EraseResult.KEPT


def test_row_that_the_apps_own_tables_refer_to_stays_without_its_voice(ann: Voice, db: Database) -> None:
    with db.connection() as connection:
        connection.execute(
            'CREATE TABLE "Invoice" ("id" text, "userId" text REFERENCES "User" ("id") '
            "DEFERRABLE INITIALLY DEFERRED)"
        )
        connection.execute("""INSERT INTO "Invoice" VALUES ('i1', 'ann')""")
    receipt = erase()
    (row,) = [item for item in receipt.items if item.name == '"User"']
    assert row.result is EraseResult.KEPT and "Invoice" in row.verified
    assert count_rows(db, "ann") == (0, 0, 0, 0)
    assert users.find_user(db, "ann").ai_model is None


def test_model_that_the_app_chose_itself_is_not_taken_from_the_user(
    db: Database, home: Path, ollama: OllamaServer
) -> None:
    users.create_user(db, ADDRESS, user_id="ann", consent=True)
    with db.connection() as connection:
        connection.execute("""UPDATE "User" SET "aiProvider" = 'openai', "aiModel" = 'm1'""")
    erase(keep_mail=True)
    user = users.find_user(db, "ann")
    assert (user.ai_provider, user.ai_model, user.voice_consent_at) == ("openai", "m1", None)


def test_remote_storage_is_emptied_and_gets_the_receipt(
    db: Database, home: Path, ollama: OllamaServer, adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    monkeypatch.setenv("OWNVOICE_STORAGE_URL", f"memory://{uuid4().hex}")
    tools.settings.cache_clear()
    voice = give_voice(db, home, ollama, "ann", adapters[0])
    assert tools.job_folder(voice.promoted.id).files() == 3
    receipt = erase()
    assert receipt.complete and tools.job_folder(voice.promoted.id).files() == 0
    fs, root = fsspec.core.url_to_fs(tools.settings().storage)
    (file,) = fs.ls(f"{root}/receipts", detail=False)
    assert EraseReceipt.model_validate_json(fs.cat_file(file)) == receipt


def test_folder_in_the_storage_of_before_is_found_by_its_row(
    ann: Voice, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = JobFolder(tools.settings().storage, ann.promoted.id)
    assert old.files() == 3
    monkeypatch.setenv("OWNVOICE_STORAGE_URL", str(tmp_path / "moved"))
    tools.settings.cache_clear()
    assert erase().complete and old.files() == 0


# ---- again -------------------------------------------------------------------------------------------


def test_second_erasure_finds_everything_absent(ann: Voice) -> None:
    erase()
    again = erase()
    kept = {item.kind for item in again.items if item.result is EraseResult.KEPT}
    assert again.complete and kept <= {"events"}
    elsewhere = [item.result for item in again.items if item.where != "prefect"]
    assert set(elsewhere) == {EraseResult.ABSENT}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_crash_around_any_step_is_finished_by_the_same_call(
    when: str,
    step: str,
    ann: Voice,
    anna: Voice,
    db: Database,
    home: Path,
    ollama: OllamaServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import flows.erase_user as flow_file

    real = getattr(flow_file, step)

    def crash(*arguments: Any) -> None:
        if when == "after":
            real(*arguments)
        raise KeyboardInterrupt

    before = state_of(anna, db, home, ollama)
    with monkeypatch.context() as patch:
        patch.setattr(flow_file, step, crash)
        with pytest.raises(KeyboardInterrupt):
            erase()
    gone = (when, step) == ("after", "remove_rows")
    assert (count_rows(db, "ann").jobs == 0) is gone  # rows go last
    receipt = erase()
    assert receipt.complete
    assert state_of(ann, db, home, ollama) == NOTHING
    assert state_of(anna, db, home, ollama) == before
    # What the first call removed is written down in its own receipt, whatever became of it.
    told: dict[str, EraseResult] = {}
    for file in sorted((home / "storage" / "receipts").iterdir()):
        for thing, result in results(EraseReceipt.model_validate_json(file.read_text())).items():
            told[thing] = result if told.get(thing) is not EraseResult.REMOVED else EraseResult.REMOVED
    assert told[f"blob {ann.digest} ollama"] is EraseResult.REMOVED
    assert told['rows "FineTuningJob" database'] is EraseResult.REMOVED


def test_engine_that_does_not_answer_keeps_the_rows_and_says_what_is_left(
    ann: Voice, db: Database, home: Path, ollama: OllamaServer
) -> None:
    ollama.stop()
    with pytest.raises(ServingUnavailable, match=r"2 job folders and all rows of user ann.*erase ann"):
        erase()
    assert count_rows(db, "ann") == (1, 3, 2, 1)
    assert users.find_user(db, "ann").voice_consent_at is None  # nothing new starts meanwhile
    (file,) = (home / "storage" / "receipts").iterdir()
    assert not EraseReceipt.model_validate_json(file.read_text()).complete
    ollama.start()
    assert erase().complete
    assert state_of(ann, db, home, ollama) == NOTHING


def test_storage_that_fails_keeps_the_rows(ann: Voice, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: JobFolder) -> None:
        raise StorageError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(JobFolder, "remove_all", refuse)
        with pytest.raises(StorageError):
            erase()
    assert count_rows(db, "ann").jobs == 2
    assert erase().complete


# ---- a job at work -----------------------------------------------------------------------------------


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import erase as steps

    for name, value in {"POLL_S": 0.05, "GRACE_S": 0.1, "RUN_ENDED_S": 0.3, "CANCEL_S": 1.0}.items():
        monkeypatch.setattr(steps, name, value)


@pytest.mark.parametrize("stage", [None, Stage.EXTRACT, Stage.TRAIN])
def test_job_whose_flow_run_cannot_be_reached_is_ended_and_erased(
    stage: Stage | None, ann: Voice, db: Database, hurried: None
) -> None:
    job = new_job(db, ann.user)
    dispatch.bind_run(db, [job.id], str(uuid4()))
    if stage is not None:
        jobs.enter_stage(db, job.id, stage)
    tools.job_folder(job.id).write_text("dataset.jsonl", "{}")
    assert erase().complete
    assert tools.job_folder(job.id).files() == 0
    assert count_rows(db, "ann") == (0, 0, 0, 0)


def test_job_that_hears_of_its_cancel_is_waited_for(
    ann: Voice, db: Database, hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import erase as steps

    job = new_job(db, ann.user)
    jobs.enter_stage(db, job.id, Stage.EXTRACT)
    asked = list[bool]()

    def alive(run_id: str | None) -> bool:
        asked.append(jobs.is_cancel_requested(db, job.id))
        if len(asked) == 3:
            jobs.mark_cancelled(db, job.id)  # what its own flow does at its next step
        return True

    monkeypatch.setattr(steps, "is_alive", alive)
    monkeypatch.setattr(steps, "_end_here", lambda job: pytest.fail("it was ending by itself"))
    assert erase().complete and asked == [True, True, True]


def test_job_that_appears_during_the_erasure_keeps_all_rows(ann: Voice, db: Database) -> None:
    known = [ann.promoted.id, ann.failed.id]
    late = new_job(db, ann.user)
    with pytest.raises(JobAlreadyActive, match=late.id):
        erase_rows(db, "ann", known, keep_mail=False)
    assert count_rows(db, "ann").jobs == 3
    assert jobs.find_job(db, late.id).status is JobStatus.PENDING


# ---- Prefect's records -------------------------------------------------------------------------------


def test_flow_runs_and_artifacts_of_the_jobs_go_and_those_of_others_stay(
    ann: Voice, anna: Voice, db: Database
) -> None:
    from prefect import flow, tags
    from prefect.artifacts import create_markdown_artifact
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        ArtifactFilter,
        ArtifactFilterKey,
        FlowRunFilter,
        FlowRunFilterId,
    )
    from prefect.runtime import flow_run

    @flow
    def work(job_ids: list[str]) -> str:
        for job_id in job_ids:
            create_markdown_artifact(key=f"training-{job_id}", markdown="6 steps")
        return str(flow_run.id)

    @flow(flow_run_name="train-{user_id}")
    def train(user_id: str) -> str:
        return str(flow_run.id)

    hers, someone_elses = ann.promoted.id, anna.promoted.id
    with tags(f"job:{hers}"):
        own = work([hers])
    with tags(f"job:{someone_elses}"):
        other = work([someone_elses])
    with tags(f"job:{hers}", f"job:{someone_elses}"):
        shared = work([hers, someone_elses])
    with db.connection() as connection:
        connection.execute("""UPDATE "User" SET "email" = 'Ann@Example.net' WHERE "id" = 'ann'""")
    named, address, longer = train("ann"), train("Ann@Example.net"), train("anna")
    receipt = erase()

    runs = FlowRunFilter(id=FlowRunFilterId(any_=[own, other, shared, named, address, longer]))
    pictures = [f"training-{job_id}" for job_id in (hers, someone_elses)]
    artifacts = ArtifactFilter(key=ArtifactFilterKey(any_=pictures))
    with get_client(sync_client=True) as client:
        left = {str(run.id) for run in client.read_flow_runs(flow_run_filter=runs)}
        keys = {artifact.key for artifact in client.read_artifacts(artifact_filter=artifacts)}
    assert left == {other, shared, longer}
    assert keys == {f"training-{someone_elses}"}
    found = results(receipt)
    assert found["flow runs flow runs prefect"] is EraseResult.REMOVED
    assert found["flow runs shared flow runs prefect"] is EraseResult.KEPT


# ---- asking ------------------------------------------------------------------------------------------


def test_address_is_refused_as_a_parameter_that_prefect_would_keep(ann: Voice, db: Database) -> None:
    with pytest.raises(ConfigError, match="Prefect keeps") as refused:
        erase(ADDRESS)
    assert ADDRESS not in str(refused.value)
    assert users.find_user(db, "ann").voice_consent_at is not None


def test_id_that_was_never_there_has_a_receipt_in_which_all_is_absent(
    db: Database, home: Path, ollama: OllamaServer
) -> None:
    receipt = erase("nobody")
    assert receipt.complete
    assert {item.result for item in receipt.items if item.where != "prefect"} == {EraseResult.ABSENT}
