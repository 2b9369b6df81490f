"""Going back to an earlier version: what is proven first, what is refused, and two who want one row."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.adapter_folder import AdapterFolder
from store import jobs, users
from store.database import Database
from tasks import tools
from tasks.job_folder import ADAPTER_GGUF
from tests.adapters import write_adapter
from tests.ollama_server import OllamaServer
from tests.voices import (
    OLLAMA_BASE,
    at_the_gate,
    new_job,
    ollama_names,
    promote,
    put_in_folder,
    put_on_ollama,
)
from training.errors import AdapterRefused, InvalidTransition, NoConsent, ServingUnavailable
from training.schemas import Job, JobStatus, Outcome, User

pytestmark = pytest.mark.usefixtures("prefect")


@pytest.fixture
def anna(home: Path, db: Database) -> User:
    return users.create_user(db, "anna@example.net", user_id="anna", consent=True)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three different adapter files."""
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(folder / f"{seed}.gguf", seed=seed) for seed in (1, 2, 3)]


@pytest.fixture
def two_versions(db: Database, home: Path, anna: User, adapters: list[Path]) -> list[Job]:
    """Anna's promoted versions 1 and 2, both in the embedded engine's folder; 2 is active."""
    made = []
    for adapter in adapters[:2]:
        job = promote(db, anna, at_the_gate(db, anna, adapter))
        put_in_folder(home / "adapters", str(job.model_name), adapter)
        made.append(job)
    return made


def roll_back(version: int | None = None) -> Any:
    from flows.publish_adapter import rollback_adapter

    return rollback_adapter("anna", version)


def served(home: Path) -> list[str]:
    return [adapter.name for adapter in AdapterFolder(home / "adapters").all()]


def test_rollback_serves_the_version_before_and_keeps_the_later_one_published(
    two_versions: list[Job], db: Database, home: Path
) -> None:
    result = roll_back()
    assert (result["oldModel"], result["newModel"]) == ("emailai-anna:v2", "emailai-anna:v1")
    user = users.find_user(db, "anna")
    assert (user.ai_model, user.lora_adapter_id) == ("emailai-anna:v1", two_versions[0].id)
    assert user.lora_adapter_path == two_versions[0].adapter_path
    assert served(home) == ["emailai-anna:v1", "emailai-anna:v2"]
    with db.connection() as connection:
        told = connection.execute('SELECT "event" FROM "Outbox" ORDER BY "id" DESC LIMIT 1').fetchone()
    assert told == ("adapter.activated",)

    assert roll_back(2)["newModel"] == "emailai-anna:v2"  # and forward again, by its number


def test_version_that_the_engine_lost_is_published_again_from_storage(
    two_versions: list[Job], db: Database, home: Path
) -> None:
    AdapterFolder(home / "adapters").remove("emailai-anna:v1")
    roll_back()
    assert "emailai-anna:v1" in served(home)
    assert users.find_user(db, "anna").ai_model == "emailai-anna:v1"


def test_version_that_was_damaged_on_the_engine_is_mended_from_storage(
    two_versions: list[Job], db: Database, home: Path
) -> None:
    file = AdapterFolder(home / "adapters").file("emailai-anna:v1")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    roll_back()
    assert file.read_bytes() == whole
    assert users.find_user(db, "anna").ai_model == "emailai-anna:v1"


def test_stored_file_that_is_another_adapter_is_refused(
    two_versions: list[Job], db: Database, home: Path
) -> None:
    AdapterFolder(home / "adapters").remove("emailai-anna:v1")
    write_adapter(Path(tools.job_folder(two_versions[0].id).path) / ADAPTER_GGUF, seed=99)
    with pytest.raises(AdapterRefused, match="not the one that was promoted"):
        roll_back()
    assert users.find_user(db, "anna").ai_model == "emailai-anna:v2"


def test_version_that_is_nowhere_any_more_is_refused_in_one_sentence(
    two_versions: list[Job], db: Database, home: Path
) -> None:
    AdapterFolder(home / "adapters").remove("emailai-anna:v1")
    tools.job_folder(two_versions[0].id).remove_all()
    with pytest.raises(AdapterRefused, match="neither on the serving engine nor in storage"):
        roll_back()
    assert users.find_user(db, "anna").ai_model == "emailai-anna:v2"


def test_what_cannot_be_gone_back_to_is_refused_and_nothing_changes(
    two_versions: list[Job], db: Database, anna: User
) -> None:
    third = at_the_gate(db, anna, Path(tools.job_folder(two_versions[0].id).path) / ADAPTER_GGUF)
    jobs.complete_job(db, third.id, Outcome.NOT_PROVEN)
    before = users.find_user(db, "anna")
    for version, reason in ((2, "active already"), (3, "never promoted"), (7, "Promoted versions: 1, 2")):
        with pytest.raises(InvalidTransition, match=reason):
            roll_back(version)
    assert users.find_user(db, "anna") == before
    roll_back()
    with pytest.raises(InvalidTransition, match="oldest promoted version"):
        roll_back()
    users.withdraw_consent(db, "anna")
    with pytest.raises(NoConsent):
        roll_back(2)


def test_user_without_an_adapter_has_nothing_to_go_back_from(db: Database, anna: User) -> None:
    new_job(db, anna)
    with pytest.raises(InvalidTransition, match="no active adapter"):
        roll_back()


def test_consent_withdrawn_while_it_was_verified_keeps_the_version_inactive(
    two_versions: list[Job], db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import rollback

    def withdraw(*_: object) -> bool:
        users.withdraw_consent(db, "anna")
        return True

    monkeypatch.setattr(rollback, "_serves", withdraw)
    with pytest.raises(NoConsent):
        roll_back()
    assert users.find_user(db, "anna").ai_model == "emailai-anna:v2"


@pytest.mark.parametrize("first", ["training", "rollback"])
def test_rollback_and_a_training_that_finishes_at_once_both_count(
    first: str, two_versions: list[Job], db: Database, anna: User, adapters: list[Path]
) -> None:
    third = at_the_gate(db, anna, adapters[2])
    jobs.record(db, third.id, sent_count=321)
    failures = list[Exception]()

    def act(what: str) -> None:
        try:
            if what == "training":
                promote(db, anna, third)
            else:
                jobs.activate_version(
                    db, two_versions[0].id, ai_provider="llamacpp", ai_model="emailai-anna:v1"
                )
        except Exception as exc:
            failures.append(exc)

    second = "rollback" if first == "training" else "training"
    threads = [threading.Thread(target=act, args=(what,)) for what in (first, second)]
    with db.transaction() as connection:
        # Both wait for the row when it is let go.
        connection.execute('SELECT 1 FROM "User" WHERE "id" = %s FOR UPDATE', (anna.id,))
        for waiting, thread in enumerate(threads, start=1):
            thread.start()
            while _waiting_for_locks(db) < waiting:
                assert thread.is_alive(), failures
    for thread in threads:
        thread.join()
    assert failures == []
    user, done = users.find_user(db, "anna"), jobs.find_job(db, third.id)
    with db.connection() as connection:
        told = connection.execute('SELECT "jobId" FROM "Outbox" ORDER BY "id" DESC LIMIT 1').fetchone()
    assert told is not None
    last = jobs.find_job(db, told[0])  # of the two; written while the row was locked
    # The last one is served, whole; the training is counted whichever came first.
    assert (user.lora_adapter_id, user.ai_model) == (last.id, last.model_name)
    assert user.lora_adapter_path == last.adapter_path
    assert (done.status, done.outcome) == (JobStatus.COMPLETED, Outcome.PROMOTED)
    assert (user.adapter_training_count, user.sent_count_trained) == (3, 321)
    assert any(e.message == "Version 1 made active again" for e in jobs.events(db, two_versions[0].id))


def _waiting_for_locks(db: Database) -> int:
    with db.connection() as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE wait_event_type = 'Lock' AND datname = current_database()"
        ).fetchone()
    assert row is not None
    return int(row[0])


# ---- Ollama ------------------------------------------------------------------------------------------


@pytest.fixture
def ollama(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaServer]:
    from tasks.rollback import verify_version
    from tests.adapters import smollm2_gguf

    with OllamaServer(tmp_path / "ollama") as server:
        server.preload_base(OLLAMA_BASE, smollm2_gguf())
        monkeypatch.setenv("OLLAMA_BASE_URL", server.url)
        tools.settings.cache_clear()
        monkeypatch.setattr(verify_version, "retries", 2)
        monkeypatch.setattr(verify_version, "retry_delay_seconds", [0.1, 0.1])
        yield server


@pytest.fixture
def two_on_ollama(db: Database, anna: User, adapters: list[Path], ollama: OllamaServer) -> list[Job]:
    """Versions 1 and 2 promoted; the server holds only 2, as after a move to a new server."""
    made = [promote(db, anna, at_the_gate(db, anna, adapter), "ollama") for adapter in adapters[:2]]
    put_on_ollama(ollama.url, "emailai-anna:v2", adapters[1])
    return made


def test_engine_that_is_busy_for_a_moment_is_asked_again(
    two_on_ollama: list[Job], db: Database, ollama: OllamaServer
) -> None:
    ollama.fail_next("/api/create", 1, 503)
    roll_back()
    user = users.find_user(db, "anna")
    assert (user.ai_provider, user.ai_model) == ("ollama", "emailai-anna:v1")
    assert ollama_names(ollama.url) == ["emailai-anna:v1", "emailai-anna:v2", OLLAMA_BASE]


def test_engine_that_stays_away_leaves_the_active_version(
    two_on_ollama: list[Job], db: Database, ollama: OllamaServer
) -> None:
    ollama.stop()
    with pytest.raises(ServingUnavailable):
        roll_back()
    assert users.find_user(db, "anna").ai_model == "emailai-anna:v2"
