"""What a preset leaves to the data: the job's row holds the numbers once its data set is made."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from app.data import check_user
from app.session import Session
from store import jobs, users
from store.database import Database
from store.importers import import_mailbox
from store.mail import MailRow, insert_mail
from tasks import tools
from tasks.cohort import start_training
from tasks.data import config_of, prepare_data
from tasks.job_folder import DATASET, REPORT, SPEC
from tests.benchmarks.mailboxes import SAMPLE, SAMPLE_OWNER
from training.config import load_train_config, parse_train_config
from training.errors import NotEnoughMail
from training.schemas import Job, Outcome, RetrainMode, Stage, User

pytestmark = pytest.mark.usefixtures("prefect")
BASE = "smollm2-135m"
NEWCOMER = "anna@example.net"
VERBS = ("bring", "leave", "send", "dig", "cut", "water", "move", "paint", "weigh", "count", "mend", "order")
THINGS = ("the beans", "the gate", "two bags", "a barrow", "the plum", "our fence", "the key", "some canes")
PLACES = ("to the shed", "by the path", "for plot nine", "at the frost bed", "near the tank", "on the bank")
DAYS = ("tomorrow", "next week", "on monday", "before the rain", "after lunch", "at dusk", "this evening")


@pytest.fixture
def merrin(home: Path, db: Database) -> User:
    user = users.create_user(db, SAMPLE_OWNER[0], consent=True)
    import_mailbox(db, user, SAMPLE, aliases=SAMPLE_OWNER[1:])
    return user


def make_job(db: Database, user: User, config: dict[str, Any] | None = None) -> Job:
    given = load_train_config("default").model_dump(mode="json") if config is None else config
    return jobs.create_job(db, user.id, base_model=BASE, config=given, lora_rank=None, lora_alpha=None)


def prepared(db: Database, job: Job) -> Job:
    prepare_data(job.id)
    return jobs.find_job(db, job.id)


def write_mail(db: Database, user: User, first: int, count: int) -> None:
    """Store `count` mails of the user, numbered from `first`, in words drawn by their numbers."""
    rows = [
        MailRow(
            f"<{n}@example.net>",
            f"thread-{n}",
            None,
            True,
            user.email,
            "",
            "",
            "",
            " and ".join(" ".join(map(chance.choice, (VERBS, THINGS, PLACES, DAYS))) for _ in range(4)),
            None,
            {},
            None,
        )
        for n, chance in ((n, random.Random(n)) for n in range(first, first + count))
    ]
    insert_mail(db, users.ensure_account(db, user), rows)


def test_a_prepared_job_holds_the_numbers_the_fields_and_the_reason(db: Database, merrin: User) -> None:
    job = prepared(db, make_job(db, merrin))
    config = parse_train_config(job.config)
    assert config.auto == ()
    assert config.chosen is not None and "epochs" in config.chosen.fields
    assert (job.lora_rank, job.lora_alpha) == (config.lora.rank, config.lora.alpha)
    assert job.metrics.chosen == config.chosen.reason
    assert f"{job.training_emails} training mails" in job.metrics.chosen
    assert job.metrics.chosen in [event.message for event in jobs.events(db, job.id)]


def test_the_gpu_side_is_told_the_numbers(
    db: Database, merrin: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepared(db, make_job(db, merrin))

    def no_gpu_pool(*_: Any, **__: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr("tasks.cohort.run_deployment", no_gpu_pool)
    with pytest.raises(InterruptedError):
        start_training([job.id], 1)
    told = tools.job_folder(job.id).read_json(SPEC)["trainConfig"]
    assert told == job.config and told["auto"] == []


def test_a_preset_of_numbers_is_trained_as_it_is(db: Database, merrin: User) -> None:
    seeds = load_train_config("seeds")
    job = prepared(db, make_job(db, merrin, seeds.model_dump(mode="json")))
    assert parse_train_config(job.config) == seeds
    assert job.metrics.chosen == ""


def test_a_row_without_a_configuration_is_trained_with_the_default(db: Database, merrin: User) -> None:
    job = prepared(db, make_job(db, merrin, {}))
    assert job.config["name"] == "default" and job.metrics.chosen


def test_the_check_shows_what_the_job_will_choose(db: Database, merrin: User) -> None:
    shown = check_user(Session(), merrin.email)
    job = prepared(db, make_job(db, merrin))
    assert shown.chosen == job.metrics.chosen
    assert shown.estimate is not None and job.estimated_seconds == shown.estimate.seconds


def test_too_little_mail_leaves_the_choice_open(home: Path, db: Database) -> None:
    anna = users.create_user(db, NEWCOMER, consent=True)
    write_mail(db, anna, 0, 30)
    job = make_job(db, anna)
    with pytest.raises(NotEnoughMail):
        prepare_data(job.id)
    assert "epochs" in parse_train_config(jobs.find_job(db, job.id).config).auto


def test_a_data_set_that_is_made_again_from_more_mail_keeps_the_choice(home: Path, db: Database) -> None:
    anna = users.create_user(db, NEWCOMER, consent=True)
    write_mail(db, anna, 0, 110)
    before = prepared(db, make_job(db, anna))
    write_mail(db, anna, 110, 290)
    tools.job_folder(before.id).remove(REPORT, DATASET)
    jobs.fail_job(db, before.id, "STORAGE", "The data set was lost.")
    after = prepared(db, jobs.requeue_job(db, before.id))
    assert (after.training_emails or 0) > (before.training_emails or 0)
    assert after.config == before.config and after.metrics.chosen == before.metrics.chosen


def test_an_incremental_training_takes_the_shape_of_the_adapter_in_use(home: Path, db: Database) -> None:
    anna = users.create_user(db, NEWCOMER, consent=True)
    first = jobs.create_job(db, anna.id, base_model=BASE, config={}, lora_rank=8, lora_alpha=24)
    for stage in (Stage.TRAIN, Stage.EVALUATE, Stage.PUBLISH):
        jobs.enter_stage(db, first.id, stage)
    jobs.complete_job(db, first.id, Outcome.PROMOTED, ai_provider="llamacpp", ai_model="emailai-anna:v1")
    going_on = load_train_config("default", {"mode": RetrainMode.INCREMENTAL})
    config = config_of(make_job(db, anna, going_on.model_dump(mode="json")))
    assert (config.lora.rank, config.lora.alpha) == (8, 24)
