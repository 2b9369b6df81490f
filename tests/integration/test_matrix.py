"""`ownvoice evaluate --matrix` with tiny real models: what is measured on, who wins, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app.cli import app
from store import jobs, users
from store import mail as stored_mail
from store.database import Database
from store.mail import MailRow, insert_mail
from tasks import tools
from tasks.job_folder import ADAPTER, ADAPTER_GGUF, OLD_SET
from tests.bases import tiny_base
from tests.command_sessions import closed_sessions
from training.config import DataConfig, LoraConfig, TrainConfig
from training.dataset import OldSet, Prepared, encode, prepare
from training.errors import ConfigError, NoConsent, NotEnoughMail, OwnvoiceError, StorageError, UnknownUser
from training.panel import PERSONAS, read_mailbox
from training.schemas import Job, Outcome, Stage, User

__all__ = ["closed_sessions"]
pytestmark = pytest.mark.usefixtures("closed_sessions")
BASE = "smollm2-135m"
ANNA, BORIS = "anna@example.net", "boris@example.net"
QUICK = TrainConfig(
    precision="fp32", epochs=3, learning_rate=2e-2, batch_tokens=2048, validation_fraction=0,
    lora=LoraConfig(rank=4, alpha=8, dropout=0),
)  # fmt: skip


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """PEFT files on the tiny base: one learnt from Anna's mail, one from Boris's."""
    from training.lora import train_adapter

    found = {}
    for email in (ANNA, BORIS):
        prepared = prepare(
            [mail.model_copy(update={"body_text": body}) for mail, body in mails_of(email)[:50]], DataConfig()
        )
        base = tiny_base()
        examples = [encode(e, base.tokenizer, QUICK.max_seq_tokens) for e in prepared.train]
        result = train_adapter(QUICK, examples, base, tmp_path_factory.mktemp(email[:5]))
        found[email] = Path(result.adapter_dir)
    return found


def mails_of(email: str) -> list[Any]:
    """Return (mail, body) of a persona; Boris writes the same in capitals, so that they are easily told."""
    found = read_mailbox(PERSONAS / "kit.jsonl")
    return [(mail, mail.body_text.upper() if email == BORIS else mail.body_text) for mail in found]


def store_mail(db: Database, user: User, first: int, last: int, again: str = "") -> None:
    rows = [
        MailRow(
            f"<{again}{user.id}-{mail.position}>", again + mail.thread_id, None, True, user.email, "", "",
            mail.subject, body, None, {}, mail.sent_at,
        )
        for mail, body in mails_of(user.email)[first:last]
    ]  # fmt: skip
    insert_mail(db, users.ensure_account(db, user), rows)


def trained(db: Database, user: User, adapter: Path) -> Job:
    """End a job as the flow does that promotes: frozen set and adapter in the folder, the row in use."""
    job = jobs.create_job(db, user.id, base_model=BASE, config={}, lora_rank=4, lora_alpha=8)
    for stage in Stage:
        if stage is not Stage.ACTIVATE:
            jobs.enter_stage(db, job.id, stage)
    folder = tools.job_folder(job.id)
    folder.write_json(OLD_SET, OldSet.of(prepared_of(db, user).held_out).to_json_dict())
    shutil.copytree(adapter, Path(folder.path) / ADAPTER)
    state = stored_mail.fetch_sent_state(db, user.id)
    jobs.record(db, job.id, last_position=state.last_position, adapter_path=f"{folder.url}/{ADAPTER_GGUF}")
    return jobs.complete_job(
        db, job.id, Outcome.PROMOTED, ai_provider="llamacpp", ai_model=f"emailai-{user.id}:v1"
    )


def prepared_of(db: Database, user: User) -> Prepared:
    return prepare(stored_mail.fetch_sent_mail(db, user.id, 500), DataConfig())


@pytest.fixture
def people(
    home: Path, db: Database, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> dict[str, User]:
    """Anna and Boris with imported mail and an adapter each, on a base that loads in no time."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("training.loaded_base.load_base", lambda info, cache, config: tiny_base())
    found = {}
    for email in (ANNA, BORIS):
        user = users.create_user(db, email, user_id=email[:4], consent=True)
        store_mail(db, user, 0, 50)
        trained(db, user, adapters[email])
        found[email] = user
    return found


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["evaluate", "--matrix", *arguments])


def matrix(*arguments: str) -> tuple[int, dict[str, Any]]:
    shown = run(*arguments, "--json")
    assert shown.stdout, shown.exception
    return shown.exit_code, json.loads(shown.stdout)


def test_each_adapter_wins_the_mail_of_its_own_person(
    people: dict[str, User], db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.matrix.MIN_USABLE", 40)
    out, held_out = tmp_path / "matrix.md", len(prepared_of(db, people[ANNA]).held_out)
    shown = run(ANNA, BORIS, "--out", str(out))
    assert shown.exit_code == 0, shown.exception
    assert "The diagonal wins for all 2 mailboxes with at least 40 usable mails." in shown.stdout
    lines = out.read_text(encoding="utf-8").splitlines()
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:4]]
        for line in lines
        if "|" in line
    }
    assert [cell.startswith("**") for cell in rows[f"{ANNA} v1"]] == [True, False]
    assert [cell.startswith("**") for cell in rows[f"{BORIS} v1"]] == [False, True]
    assert [cell.startswith("**") for cell in rows["base"]] == [False, False]
    assert any(
        line.startswith(f"- {ANNA}: {held_out} mails that its adapter never saw ({held_out} of the frozen")
        for line in lines
    )


def test_adapters_that_were_exchanged_lose_and_the_exit_code_says_so(
    people: dict[str, User], db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.matrix.MIN_USABLE", 40)
    one, two = (
        Path(tools.job_folder(str(jobs.current_adapter(db, u.id).id)).path) / ADAPTER for u in people.values()
    )  # type: ignore[union-attr]
    aside = one.with_name("aside")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    code, told = matrix(ANNA, BORIS)
    assert code == 1 and told["diagonalWins"] is False
    assert "does not win for 2 of 2" in told["sentence"] and ANNA in told["sentence"]
    # Mailboxes under the limit are shown and decide nothing.
    monkeypatch.setattr("training.matrix.MIN_USABLE", 100)
    code, told = matrix(ANNA, BORIS)
    assert code == 0 and told["diagonalWins"] is None and told["sentence"].startswith("Nothing is decided")


def test_mail_that_arrived_since_counts_and_mail_of_known_conversations_does_not(
    people: dict[str, User], db: Database
) -> None:
    frozen = {email: (len(prepared_of(db, user).held_out), 0) for email, user in people.items()}
    assert all(count >= 20 for count, _ in frozen.values())
    before = {c["email"]: (c["old"], c["new"]) for c in matrix(ANNA, BORIS)[1]["columns"]}
    known = {mail.thread_id for mail in stored_mail.fetch_sent_mail(db, people[ANNA].id, 500)}
    later = mails_of(ANNA)[50:]
    fresh = sum(mail.thread_id not in known for mail, _ in later)
    assert 0 < fresh < len(later)
    store_mail(db, people[ANNA], 50, 100)
    after = {c["email"]: (c["old"], c["new"]) for c in matrix(ANNA, BORIS)[1]["columns"]}
    assert before == frozen
    assert after == {ANNA: (frozen[ANNA][0], fresh), BORIS: frozen[BORIS]}


def test_fewer_than_ten_unseen_mails_are_refused_with_the_numbers(
    people: dict[str, User], db: Database
) -> None:
    job = jobs.current_adapter(db, people[BORIS].id)
    assert job is not None
    tools.job_folder(job.id).remove(OLD_SET)
    store_mail(db, people[BORIS], 56, 58, again="later-")
    shown = run(ANNA, BORIS)
    assert isinstance(shown.exception, NotEnoughMail) and shown.exception.exit_code == 3
    assert (shown.exception.found, shown.exception.needed) == (2, 10)
    assert "2 usable mails are left (0 of the frozen held-out set, 2 that arrived since)" in str(
        shown.exception
    )


def test_what_cannot_be_measured_is_one_sentence(
    people: dict[str, User], db: Database, tmp_path: Path
) -> None:
    users.create_user(db, "new@example.net", consent=True)
    shy = users.create_user(db, "shy@example.net")
    bad: list[tuple[tuple[str, ...], type[OwnvoiceError], str]] = [
        ((ANNA,), ConfigError, "2 to 20 users"),
        ((ANNA, "anna"), ConfigError, "named twice"),
        ((ANNA, "nobody@example.net"), UnknownUser, "nobody@example.net"),
        ((ANNA, "new@example.net"), OwnvoiceError, "has no adapter yet"),
        ((ANNA, shy.email), NoConsent, "has not agreed"),
        ((ANNA, BORIS, "--out", str(tmp_path / "none" / "m.md")), ConfigError, "cannot be written"),
    ]
    for arguments, kind, words in bad:
        shown = run(*arguments)
        assert isinstance(shown.exception, kind) and words in str(shown.exception), arguments
    assert "--matrix" in str(CliRunner().invoke(app, ["evaluate", ANNA, BORIS]).exception)


def test_adapters_of_two_bases_do_not_compare(people: dict[str, User], db: Database) -> None:
    with db.connection() as connection:
        connection.execute("""UPDATE "FineTuningJob" SET "baseModel" = 'other' WHERE "userId" = 'bori'""")
    shown = run(ANNA, BORIS)
    assert isinstance(shown.exception, ConfigError) and f"(other, {BASE})" in str(shown.exception)


def test_an_adapter_that_left_the_storage_is_named(people: dict[str, User], db: Database) -> None:
    job = jobs.current_adapter(db, people[BORIS].id)
    assert job is not None
    tools.job_folder(job.id).remove(ADAPTER)
    shown = run(ANNA, BORIS)
    assert isinstance(shown.exception, StorageError) and f"version 1 of {BORIS}" in str(shown.exception)
