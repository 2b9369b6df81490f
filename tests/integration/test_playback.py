"""Instructions by playback in a job: the real base, what is kept of its answers, what can go wrong."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.data import check_user
from app.session import Session
from serving.llamacpp import LlamaCppServing
from store import jobs, users
from store.database import Database
from tasks import playback, tools
from tasks.answer_cache import AnswerCache
from tasks.data import prepare_data
from tasks.job_folder import DATASET, HELD_OUT
from tests.adapters import smollm2_gguf
from tests.integration.test_retrain_modes import make_job, write_mail
from training.dataset import from_jsonl
from training.errors import ServingError, ServingUnavailable, TrainingCancelled
from training.schemas import ChatMessage, Example, Generated, GenerateOptions, Job, JobStatus, User

pytestmark = pytest.mark.usefixtures("prefect")
ASKED = "Write an email to tell the lads about the list."
"""What the stand-in answers: its words are in every mail of `write_mail`."""
PLAYBACK = {
    "max_mails": 40, "min_usable": 10, "min_held_out": 4, "max_held_out": 4, "instructions": "playback"
}  # fmt: skip


class Base:
    """An engine of which only the base answers; `happens` is called before each answer, with its number."""

    engine = "llamacpp"
    at_once = 1

    def __init__(self, happens: Callable[[int], None] = lambda number: None) -> None:
        self.happens, self.asked = happens, 0

    def base_ready(self) -> None: ...

    def base_digest(self) -> str:
        return "sha256:1"

    def generate(self, name: str | None, messages: list[ChatMessage], options: GenerateOptions) -> Generated:
        assert name is None
        self.asked += 1
        self.happens(self.asked)
        return Generated(text=ASKED, stopped=True)


@pytest.fixture
def anna(home: Path, db: Database) -> User:
    return users.create_user(db, "anna@example.net", consent=True)


@pytest.fixture
def job(db: Database, anna: User) -> Job:
    """A waiting job of a person with 14 mails."""
    write_mail(db, anna, 0, 14)
    return make_job(db, anna, data=PLAYBACK)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[[Base], Base]:
    """Put a stand-in where the configured engine would be, and do not wait for it."""

    def serve(base: Base) -> Base:
        @contextmanager
        def opened(base_model: str, *, many: bool) -> Iterator[Any]:
            yield base

        monkeypatch.setattr(playback, "serving", opened)
        monkeypatch.setattr(playback, "SERVING_DELAYS", [0.01, 0.01])
        monkeypatch.setattr(playback, "LOOK_EVERY_S", 0.0)
        return base

    return serve


def data_set(job: Job, *names: str) -> list[Example]:
    return [
        e
        for name in names or (DATASET, HELD_OUT)
        for e in from_jsonl(tools.job_folder(job.id).read_text(name))
    ]


def kept(anna: User) -> int:
    return len(AnswerCache(tools.settings().storage, anna.id))


# ---- the real base -----------------------------------------------------------------------------------


def test_a_job_asks_the_real_base_and_keeps_its_answers_for_the_next_job(
    db: Database, job: Job, anna: User, home: Path
) -> None:
    report = prepare_data(job.id)
    examples = data_set(job)
    written = [e for e in examples if e.instruction != "Write an email."]
    assert report.instructions.startswith(
        f"The base model wrote the instructions of {len(written)} of 14 mails"
    )
    assert written, "not one answer of the base was taken"
    assert all(e.instruction.startswith("Write an email ") for e in written)
    (file,) = (home / "storage" / "playback").iterdir()
    assert (stat.S_IMODE(file.parent.stat().st_mode), stat.S_IMODE(file.stat().st_mode)) == (0o700, 0o600)
    assert report.instructions in [event.message for event in jobs.events(db, job.id)]
    words = [e.instruction.removeprefix("Write an email ") for e in written]
    told = json.dumps([event.to_json_dict() for event in jobs.events(db, job.id)]) + report.model_dump_json()
    assert not any(word in told for word in words)

    jobs.fail_job(db, job.id, "X", "x")
    base = Base()
    again = make_job(db, anna, data=PLAYBACK)
    with closing(LlamaCppServing(smollm2_gguf(), home / "adapters")) as engine:
        base.base_digest = engine.base_digest  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(playback, "serving", contextmanager(lambda base_model, many: iter([base])))
        prepare_data(again.id)
    assert base.asked == 0
    assert [e.instruction for e in data_set(again)] == [e.instruction for e in examples]


# ---- what can go wrong -------------------------------------------------------------------------------


def test_a_check_says_what_playback_would_take_and_asks_nobody(db: Database, anna: User, home: Path) -> None:
    write_mail(db, anna, 0, 14)
    preset = home / "asked.yaml"
    preset.write_text(json.dumps({"data": PLAYBACK}))
    report = check_user(Session(), anna.id, config=str(preset))
    assert "the base model is asked for the instructions of 14 mails, about 28 s" in report.instructions
    assert not (home / "storage").exists()


def test_subjects_ask_no_model(db: Database, anna: User, served: Callable[[Base], Base]) -> None:
    base = served(Base())
    write_mail(db, anna, 0, 14)
    report = prepare_data(make_job(db, anna).id)
    assert (base.asked, report.instructions, kept(anna)) == (0, "", 0)


def test_a_mailbox_that_is_too_small_is_refused_before_anything_is_asked(
    db: Database, anna: User, served: Callable[[Base], Base]
) -> None:
    base = served(Base())
    write_mail(db, anna, 0, 6)
    with pytest.raises(Exception, match="usable"):
        prepare_data(make_job(db, anna, data=PLAYBACK).id)
    assert base.asked == 0


def test_an_engine_that_was_away_for_a_moment_is_asked_again(
    job: Job, served: Callable[[Base], Base]
) -> None:
    def away_twice(number: int) -> None:
        if number in (3, 4):
            raise ServingUnavailable("away")

    base = served(Base(away_twice))
    prepare_data(job.id)
    assert base.asked == 16
    assert {e.instruction for e in data_set(job)} == {ASKED}


def test_what_was_answered_before_the_engine_went_away_is_not_asked_again(
    job: Job, anna: User, served: Callable[[Base], Base]
) -> None:
    def gone(number: int) -> None:
        if number > 5:
            raise ServingUnavailable("away")

    served(Base(gone))
    with pytest.raises(ServingUnavailable):
        prepare_data(job.id)
    assert kept(anna) == 5
    base = served(Base())
    assert {e.instruction for e in playback_again(job)} == {ASKED}
    assert base.asked == 9


def playback_again(job: Job) -> list[Example]:
    jobs.fail_job(tools.database(), job.id, "SERVING", "away")
    jobs.requeue_job(tools.database(), job.id)
    prepare_data(job.id)
    return data_set(job)


def test_one_mail_that_the_engine_refuses_keeps_its_subject(job: Job, served: Callable[[Base], Base]) -> None:
    def refuses_the_third(number: int) -> None:
        if number == 3:
            raise ServingError("too long")

    served(Base(refuses_the_third))
    report = prepare_data(job.id)
    assert "13 of 14 mails" in report.instructions and "1 not answered by the engine" in report.instructions
    assert sorted(e.instruction for e in data_set(job))[-1] == "Write an email."


def test_an_engine_that_refuses_every_mail_stops_the_job_with_its_reason(
    job: Job, served: Callable[[Base], Base]
) -> None:
    def refuses(number: int) -> None:
        raise ServingError("no such model")

    base = served(Base(refuses))
    with pytest.raises(ServingError, match="no such model"):
        prepare_data(job.id)
    assert base.asked == playback.MOST_REFUSED


def test_a_cancel_is_seen_between_two_mails_and_progress_before(
    db: Database, job: Job, anna: User, served: Callable[[Base], Base]
) -> None:
    def cancels_at_the_fourth(number: int) -> None:
        if number == 4:
            jobs.request_cancel(db, job.id)

    base = served(Base(cancels_at_the_fourth))
    with pytest.raises(TrainingCancelled):
        prepare_data(job.id)
    assert base.asked == 4
    now = jobs.find_job(db, job.id)
    assert now.status is JobStatus.PREPARING_DATA and 20 < now.progress < 29
    assert not tools.job_folder(job.id).exists(DATASET)


def test_held_out_mail_is_asked_about_in_the_same_way(job: Job, served: Callable[[Base], Base]) -> None:
    served(Base())
    prepare_data(job.id)
    assert {e.instruction for e in data_set(job, HELD_OUT)} == {ASKED}
    assert {e.instruction for e in data_set(job, DATASET)} == {ASKED}
