"""From what a retrain learns: real mail rows, real job folders, a real adapter trained for two steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.session import Session
from app.training_jobs import start_job
from store import jobs, users
from store.database import Database
from store.mail import MailRow, insert_mail
from tasks import tools
from tasks.data import prepare_data
from tasks.job_folder import (
    ADAPTER,
    DATASET,
    ERROR,
    HELD_OUT,
    LEARNT,
    METRICS,
    OLD_HELD_OUT,
    OLD_SET,
    PANEL,
    RECIPE,
    SPEC,
    JobFolder,
)
from tasks.stages import forget_mail
from tasks.train import train_job
from tests.adapters import smollm2_gguf
from training.config import load_train_config
from training.dataset import from_jsonl, hash_id
from training.errors import NotEnoughMail
from training.export import sha256_of
from training.gate_config import load_gate_config
from training.panel import panel_members
from training.panel_file import from_panel_jsonl, to_panel_jsonl
from training.schemas import (
    DataReport,
    Example,
    Job,
    JobSpec,
    MeasuredLosses,
    Outcome,
    RetrainMode,
    Stage,
    User,
)
from training.start_adapter import CONFIG_FILE, WEIGHTS_FILE

pytestmark = pytest.mark.usefixtures("prefect")
BASE = "smollm2-135m"
QUICK: dict[str, Any] = {
    "max_steps": 2,
    "batch_tokens": 128,
    "lora": {"rank": 2, "alpha": 4},
    "data": {"max_mails": 40, "min_usable": 10, "min_usable_new": 6, "min_held_out": 4, "max_held_out": 4},
}
PLACES = ("the slip", "the sail loft", "shed two", "the ferry stage", "the old quay", "the chandlery")
THINGS = (
    "spruce plank",
    "bronze cleat",
    "brass lamp",
    "oak rib",
    "copper nail box",
    "hemp line",
    "cork float",
)
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday")


@pytest.fixture
def anna(home: Path, db: Database) -> User:
    return users.create_user(db, "anna@example.net", consent=True)


def write_mail(db: Database, user: User, first: int, count: int, **fields: Any) -> None:
    """Store `count` undated mails of the user, numbered from `first`; each is a thread of its own."""
    rows = []
    for n in range(first, first + count):
        words = (
            f"Right then, the {THINGS[n % 7]} number {n} goes to {PLACES[n % 6]} on {DAYS[n % 5]}. "
            f"Bring {n % 9 + 2} clamps and the {THINGS[(n + 3) % 7]} for {PLACES[(n + 2) % 6]}, and tell "
            f"the lads that row {n * 7 % 83} of the list is done."
        )
        mail = MailRow(
            f"<{n}@example.net>", f"thread-{n}", None, True, user.email, "", "", "", words, None, {}, None
        )
        rows.append(mail._replace(**fields))
    insert_mail(db, users.ensure_account(db, user), rows)


def make_job(db: Database, user: User, mode: RetrainMode = RetrainMode.REPLAY, **changes: Any) -> Job:
    preset = load_train_config("cpu-smoke", {**QUICK, "mode": mode, **changes})
    return jobs.create_job(
        db,
        user.id,
        base_model=BASE,
        config=preset.model_dump(mode="json"),
        lora_rank=preset.lora.rank,
        lora_alpha=preset.lora.alpha,
    )


def prepare(db: Database, job: Job) -> tuple[Job, DataReport]:
    report = prepare_data(job.id)
    return jobs.find_job(db, job.id), report


def promote(db: Database, job: Job) -> Job:
    """End a prepared job as the flow does when the gate promotes it: mail forgotten, adapter in use."""
    for stage in (Stage.TRAIN, Stage.EVALUATE, Stage.PUBLISH):
        jobs.enter_stage(db, job.id, stage)
    if not tools.job_folder(job.id).exists(ADAPTER):
        write_adapter(tools.job_folder(job.id), job)
    forget_mail(job.id)
    return jobs.complete_job(
        db, job.id, Outcome.PROMOTED, ai_provider="llamacpp", ai_model=f"emailai:v{job.version}"
    )


def write_adapter(folder: JobFolder, job: Job) -> None:
    """Leave PEFT files of the job's shape, which CPU stages look at and never load."""
    lora = job.config["lora"]
    found = {"r": lora["rank"], "lora_alpha": lora["alpha"], "target_modules": lora["target_modules"]}
    adapter = Path(folder.path) / ADAPTER
    adapter.mkdir()
    (adapter / CONFIG_FILE).write_text(json.dumps({**found, "use_rslora": False}))
    (adapter / WEIGHTS_FILE).write_bytes(b"weights")


@pytest.fixture
def first(db: Database, anna: User) -> Job:
    """A promoted first training on mails 0 to 29."""
    write_mail(db, anna, 0, 30)
    job, _ = prepare(db, make_job(db, anna))
    return promote(db, job)


def numbers(job: Job, name: str) -> set[int]:
    """Return the numbers of the mails in a file of the job folder."""
    found: list[Example] = from_jsonl(tools.job_folder(job.id).read_text(name))
    return {int(example.thread_id.removeprefix("thread-")) for example in found}


def messages(db: Database, job: Job) -> str:
    return " | ".join(event.message for event in jobs.events(db, job.id))


# ---- what is read ------------------------------------------------------------------------------------


def test_first_training_freezes_its_held_out_set_and_says_what_it_read(db: Database, anna: User) -> None:
    write_mail(db, anna, 0, 30)
    job, report = prepare(db, make_job(db, anna, RetrainMode.INCREMENTAL))
    held_out = numbers(job, HELD_OUT)
    assert held_out == {26, 27, 28, 29} and numbers(job, DATASET) == set(range(26))
    frozen = tools.job_folder(job.id).read_json(OLD_SET)
    assert frozen["threads"] == sorted(hash_id(f"thread-{n}") for n in held_out)
    assert "thread-2" not in json.dumps(frozen)
    assert numbers(job, OLD_HELD_OUT) == set()
    assert (job.sent_count, job.incremental_from) == (30, None)
    assert job.last_position is not None and report.train == 26
    assert "no adapter in use to go on from" in messages(db, job)


def test_replay_learns_from_all_new_mail_and_old_mail_but_never_from_the_frozen_set(
    db: Database, anna: User, first: Job
) -> None:
    frozen = set(range(26, 30))
    write_mail(db, anna, 30, 12)
    job, _ = prepare(db, make_job(db, anna))
    assert numbers(job, OLD_HELD_OUT) == frozen
    assert numbers(job, HELD_OUT) == {38, 39, 40, 41}
    trained_on = numbers(job, DATASET)
    assert set(range(30, 38)) < trained_on and len(trained_on & set(range(26))) == 24
    assert not trained_on & (frozen | numbers(job, HELD_OUT))
    assert (job.sent_count, job.incremental_from) == (42, None)
    assert "Retrain (replay): 12 of 12 new mails, 24 of 26 older ones, 4 kept" in messages(db, job)


def test_rolling_learns_from_the_newest_mail(db: Database, anna: User, first: Job) -> None:
    write_mail(db, anna, 30, 20)
    job, _ = prepare(db, make_job(db, anna, RetrainMode.ROLLING))
    read = numbers(job, DATASET) | numbers(job, HELD_OUT)
    assert read == set(range(30, 50)) | set(range(10, 26))
    assert job.incremental_from is None


def test_incremental_learns_from_new_mail_alone_and_starts_from_the_adapter_in_use(
    db: Database, anna: User, first: Job
) -> None:
    write_mail(db, anna, 30, 12)
    job, report = prepare(db, make_job(db, anna, RetrainMode.INCREMENTAL))
    assert numbers(job, DATASET) == set(range(30, 38)) and numbers(job, HELD_OUT) == {38, 39, 40, 41}
    assert numbers(job, OLD_HELD_OUT) == set(range(26, 30))
    assert (job.incremental_from, job.sent_count, report.usable) == (first.id, 42, 12)
    # What only the adapter in use learnt is compared with the new one's answers, and goes with the data set.
    assert numbers(job, LEARNT) == set(range(26))
    forget_mail(job.id)
    assert not tools.job_folder(job.id).exists(LEARNT)
    assert first.last_position is not None and job.last_position == first.last_position + 12


def test_frozen_set_is_the_first_runs_in_every_later_run_even_when_its_folder_is_gone(
    db: Database, anna: User, first: Job
) -> None:
    frozen = tools.job_folder(first.id).read_json(OLD_SET)
    for version, start in ((2, 30), (3, 42)):
        write_mail(db, anna, start, 12)
        job, _ = prepare(db, make_job(db, anna))
        assert (job.version, numbers(job, OLD_HELD_OUT)) == (version, set(range(26, 30)))
        assert tools.job_folder(job.id).read_json(OLD_SET) == frozen
        promote(db, job)
        tools.job_folder(first.id).remove_all()


def test_mail_in_a_frozen_thread_stays_out_of_training(db: Database, anna: User, first: Job) -> None:
    write_mail(db, anna, 30, 12)
    write_mail(db, anna, 42, 1, thread_id="thread-27")
    job, _ = prepare(db, make_job(db, anna))
    assert 27 not in numbers(job, DATASET) | numbers(job, HELD_OUT)
    assert len(from_jsonl(tools.job_folder(job.id).read_text(OLD_HELD_OUT))) == 4


def test_mail_of_the_frozen_set_that_was_deleted_is_not_missed(db: Database, anna: User, first: Job) -> None:
    with db.connection() as connection:
        connection.execute("""DELETE FROM "EmailMessage" WHERE "threadId" IN ('thread-26', 'thread-27')""")
    write_mail(db, anna, 30, 12)
    job, _ = prepare(db, make_job(db, anna))
    assert numbers(job, OLD_HELD_OUT) == {28, 29}


def test_training_that_was_not_promoted_leaves_the_mail_since_the_adapter_in_use_new(
    db: Database, anna: User, first: Job
) -> None:
    write_mail(db, anna, 30, 12)
    second, _ = prepare(db, make_job(db, anna))
    for stage in (Stage.TRAIN, Stage.EVALUATE):
        jobs.enter_stage(db, second.id, stage)
    jobs.complete_job(db, second.id, Outcome.KEPT_CURRENT)
    write_mail(db, anna, 42, 2)
    job, _ = prepare(db, make_job(db, anna, RetrainMode.INCREMENTAL))
    assert numbers(job, DATASET) | numbers(job, HELD_OUT) == set(range(30, 44))
    assert numbers(job, OLD_HELD_OUT) == set(range(26, 30))


def test_drafts_of_the_ai_are_no_new_mail_and_count_as_sent(db: Database, anna: User, first: Job) -> None:
    write_mail(db, anna, 30, 12)
    with db.connection() as connection:
        connection.execute(
            """UPDATE "EmailMessage" SET "aiGenerated" = true WHERE "threadId" >= 'thread-34'
               AND "threadId" <= 'thread-41'"""
        )
    with pytest.raises(NotEnoughMail, match=r"12 of them new.*8 are drafted by the AI; 6 .*4 were found"):
        prepare_data(make_job(db, anna, RetrainMode.INCREMENTAL).id)
    (job, _) = jobs.list_jobs(db, anna.id)
    assert (job.sent_count, job.version) == (42, 2)


# ---- an adapter that cannot be continued -------------------------------------------------------------


def lose_adapter(db: Database, job: Job) -> None:
    tools.job_folder(job.id).remove(ADAPTER)


def change_base(db: Database, job: Job) -> None:
    with db.connection() as connection:
        connection.execute(
            'UPDATE "FineTuningJob" SET "baseModel" = %s WHERE "id" = %s', ("llama-3.1-8b", job.id)
        )


def forget_position(db: Database, job: Job) -> None:
    jobs.record(db, job.id, last_position=None)


def tear_config(db: Database, job: Job) -> None:
    (Path(tools.job_folder(job.id).path) / ADAPTER / CONFIG_FILE).write_text("{")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lose_adapter, "files are no longer in storage"),
        (change_base, "made for llama-3.1-8b, not for smollm2-135m"),
        (forget_position, "before it was recorded"),
        (tear_config, "cannot be read"),
    ],
)
def test_adapter_that_cannot_be_continued_is_replaced_by_a_fresh_one_on_the_newest_mail(
    db: Database, anna: User, first: Job, spoil: Any, why: str
) -> None:
    spoil(db, first)
    write_mail(db, anna, 30, 12)
    job, _ = prepare(db, make_job(db, anna, RetrainMode.INCREMENTAL))
    assert job.incremental_from is None and numbers(job, LEARNT) == set()
    assert why in messages(db, job) and "fresh adapter" in messages(db, job)
    assert numbers(job, OLD_HELD_OUT) == set(range(26, 30))
    assert set(range(30, 38)) < numbers(job, DATASET) and numbers(job, DATASET) & set(range(26))


@pytest.mark.parametrize(
    "change", [{"rank": 4}, {"alpha": 8}, {"target_modules": ["q_proj"]}, {"use_rslora": True}]
)
def test_another_shape_of_adapter_starts_afresh(
    db: Database, anna: User, first: Job, change: dict[str, Any]
) -> None:
    write_mail(db, anna, 30, 12)
    job, _ = prepare(db, make_job(db, anna, RetrainMode.INCREMENTAL, lora={**QUICK["lora"], **change}))
    assert job.incremental_from is None and "does not go on from version 1" in messages(db, job)


def test_start_that_is_lost_between_two_attempts_costs_the_data_set_not_the_job(
    db: Database, anna: User, first: Job
) -> None:
    write_mail(db, anna, 30, 12)
    job, _ = prepare(db, make_job(db, anna, RetrainMode.INCREMENTAL))
    position = job.last_position
    assert prepare(db, job)[0].incremental_from == first.id  # an attempt that finds all as it was
    lose_adapter(db, first)
    jobs.fail_job(db, job.id, "STORAGE", "lost")
    again, _ = prepare(db, jobs.requeue_job(db, job.id))
    assert (again.incremental_from, again.last_position) == (None, position)
    assert numbers(again, DATASET) & set(range(26))


def test_the_reference_panel_goes_into_the_job_folder_and_away_with_the_mail(
    db: Database, anna: User, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "gate.yaml").write_text("specificity: {references: 2}\n")
    monkeypatch.setenv("OWNVOICE_GATE", str(home / "gate.yaml"))
    tools.settings.cache_clear()
    write_mail(db, anna, 0, 30)
    job, _ = prepare(db, make_job(db, anna))
    folder = tools.job_folder(job.id)
    assert from_panel_jsonl(folder.read_text(PANEL)) == from_panel_jsonl(
        to_panel_jsonl(panel_members(load_gate_config(home / "gate.yaml")))
    )
    assert len(from_panel_jsonl(folder.read_text(PANEL))) == 2
    forget_mail(job.id)
    assert not folder.exists(PANEL)


# ---- the GPU side ------------------------------------------------------------------------------------


@pytest.fixture
def storage(home: Path, base_cache: Path) -> str:
    smollm2_gguf()
    (home / "cache").symlink_to(base_cache)
    return str(home / "storage")


def train(db: Database, job: Job, storage: str, current: Job | None) -> MeasuredLosses:
    """Train a prepared job as the GPU side does and return what it measured."""
    folder = tools.job_folder(job.id)
    spec = JobSpec(
        job_id=job.id,
        base_model=BASE,
        version=job.version,
        train_config=job.config,
        current_adapter=current.id if current else None,
        start_adapter=job.incremental_from,
    )
    folder.write_json(SPEC, spec.to_json_dict())
    result = train_job(job.id, storage)
    assert result.ok, result.error_message
    return MeasuredLosses.model_validate(folder.read_json(METRICS)["losses"])


def test_incremental_training_starts_where_the_adapter_in_use_ended_and_measures_the_old_set(
    db: Database, anna: User, storage: str
) -> None:
    write_mail(db, anna, 0, 30)
    first, _ = prepare(db, make_job(db, anna))
    alone = train(db, first, storage, None)
    assert alone.current is None and alone.base.old == alone.candidate.old == ()
    promote(db, first)
    assert not tools.job_folder(first.id).exists(OLD_HELD_OUT)

    write_mail(db, anna, 30, 12)
    # Steps of no length: what comes out is what went in.
    still = {"learning_rate": 1e-30}
    second, _ = prepare(db, make_job(db, anna, RetrainMode.INCREMENTAL, **still))
    losses = train(db, second, storage, first)
    assert losses.current is not None
    assert losses.candidate.held_out == losses.current.held_out != losses.base.held_out
    assert losses.candidate.old == losses.current.old != losses.base.old
    assert {loss.thread_id for loss in losses.base.old} == {f"thread-{n}" for n in range(26, 30)}
    weights = Path(tools.job_folder(first.id).path) / ADAPTER / WEIGHTS_FILE
    assert tools.job_folder(second.id).read_json(RECIPE)["startAdapter"] == {
        "job": first.id,
        "digest": sha256_of(weights),
    }
    assert tools.job_folder(second.id).exists(PANEL)
    promote(db, second)
    for name in (DATASET, HELD_OUT, OLD_HELD_OUT, PANEL):
        assert not tools.job_folder(second.id).exists(name)


def test_training_whose_start_was_lost_says_so_and_what_a_retry_does(
    db: Database, anna: User, first: Job, storage: str
) -> None:
    write_mail(db, anna, 30, 12)
    job, _ = prepare(db, make_job(db, anna, RetrainMode.INCREMENTAL))
    shutil.rmtree(Path(tools.job_folder(first.id).path) / ADAPTER)
    with pytest.raises(AssertionError, match="ownvoice retry"):
        train(db, job, storage, None)
    assert tools.job_folder(job.id).read_json(ERROR)["code"] == "STORAGE"


# ---- asking for a mode -------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "kept"), [(None, "replay"), (RetrainMode.ROLLING, "rolling")])
def test_mode_of_one_job_replaces_the_presets(
    db: Database, anna: User, asked: RetrainMode | None, kept: str
) -> None:
    started = SimpleNamespace(
        db=db,
        settings=tools.settings(),
        orchestrator=SimpleNamespace(start_run=lambda *arguments, **options: "run-1"),
    )
    job = start_job(cast(Session, started), anna.email, config="cpu-smoke", mode=asked)
    assert job.config["mode"] == kept
