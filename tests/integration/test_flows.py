"""The two flows as Prefect runs them, in this process: how each stage can end, and what each end leaves."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest

from serving.adapter_file import file_digest
from serving.llamacpp import LlamaCppServing
from store import jobs, users
from store.database import Database
from store.dispatch import take_up
from tasks import tools
from tasks.job_folder import (
    ADAPTER_GGUF,
    CANCEL,
    DATASET,
    ERROR,
    HELD_OUT,
    METRICS,
    RECIPE,
    REPORT,
    SPEC,
    JobFolder,
)
from tests.adapters import smollm2_gguf, write_adapter
from tests.ollama_server import OllamaServer
from training.config import load_train_config
from training.dataset import ChatTemplate, to_jsonl
from training.errors import AdapterRefused, JobAlreadyActive, NoConsent, NotEnoughMail, OwnvoiceError
from training.schemas import (
    DataReport,
    Example,
    GenerateOptions,
    Job,
    JobSpec,
    JobStatus,
    MailLoss,
    MeasuredLosses,
    Outcome,
    Stage,
    TrainingResult,
    User,
)

pytestmark = pytest.mark.usefixtures("prefect")
BASE = "smollm2-135m"
WORSE, BETTER = 4.0, 3.0
SECRET_WORD = "marsupilami"
"""Stands for mail text where none may be."""


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are generated in every test that promotes."""
    monkeypatch.setattr("tasks.publish.SAMPLE_OPTIONS", GenerateOptions(seed=7, max_tokens=8))


@pytest.fixture
def anna(home: Path, db: Database) -> User:
    return users.create_user(db, "anna@example.net", consent=True)


def waiting_job(db: Database, user: User, config: str = "cpu-smoke") -> Job:
    preset = load_train_config(config)
    return jobs.create_job(
        db,
        user.id,
        base_model=BASE,
        config=preset.model_dump(mode="json"),
        lora_rank=preset.lora.rank,
        lora_alpha=preset.lora.alpha,
    )


def losses(nll: float, count: int = 6) -> list[dict[str, Any]]:
    return [
        MailLoss(example_id=f"m{n}", thread_id=f"t{n}", nll=nll, tokens=50).to_json_dict()
        for n in range(count)
    ]


@functools.cache
def chat_template() -> ChatTemplate:
    """Return the base's own; reading the header of its GGUF takes a second or more."""
    field = gguf.GGUFReader(smollm2_gguf()).get_field("tokenizer.chat_template")
    assert field is not None
    return ChatTemplate(template=field.contents(), bos_token="<|im_start|>", eos_token="<|im_end|>")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter") / ADAPTER_GGUF)


@pytest.fixture
def trained(db: Database, anna: User, adapter: Path) -> Job:
    """A waiting job whose training is done: all that the GPU side leaves, with a small adapter of ours."""
    job = waiting_job(db, anna)
    folder = tools.job_folder(job.id)
    folder.write_text(
        DATASET, to_jsonl([Example(id="m1", thread_id="t1", instruction="w", output=SECRET_WORD)])
    )
    folder.write_text(
        HELD_OUT, to_jsonl([Example(id="m2", thread_id="t2", instruction="w", output=SECRET_WORD)])
    )
    report = DataReport(sent=120, usable=110, train=90, held_out=20, eligible=True, reason="Enough.")
    folder.write_json(REPORT, report.to_json_dict())
    folder.write_json(RECIPE, {"chatTemplate": chat_template().to_json_dict()})
    shutil.copy(adapter, file_in(folder, ADAPTER_GGUF))
    write_metrics(job, base=WORSE, adapter=BETTER)
    return job


def file_in(folder: JobFolder, name: str) -> Path:
    return Path(folder.path) / name


def write_metrics(job: Job, **held_out: float) -> None:
    folder = tools.job_folder(job.id)
    training = TrainingResult(
        adapter_dir="adapter",
        steps=6,
        epochs=1,
        train_tokens=4000,
        train_seconds=10,
        train_tokens_per_second=400,
        final_train_loss=3.1,
        loss_curve=((1, 4.0), (6, 3.1)),
        trainable_parameters=1000,
        peak_memory_bytes=1,
        device="cpu",
    )
    numbers = {
        "gpuSeconds": 12.0,
        "training": training.to_json_dict(),
        "adapterDigest": file_digest(file_in(folder, ADAPTER_GGUF)),
        "heldOut": {arm: losses(nll) for arm, nll in held_out.items()},
    }
    folder.write_json(METRICS, numbers)


def run_flow(job: Job) -> Any:
    """Run train-user for a waiting job and return Prefect's final state."""
    from flows.train_user import train_user

    return train_user(job.user_id, job_id=job.id, return_state=True)


def served(home: Path) -> list[str]:
    engine = LlamaCppServing(smollm2_gguf(), home / "adapters")
    return [model.name for model in engine.list() if model.digest is not None]


def active_model(db: Database, user: User) -> str | None:
    return users.find_user(db, user.id).ai_model


# ---- judged ------------------------------------------------------------------------------------------


def test_better_adapter_is_published_and_becomes_the_users(
    trained: Job, db: Database, anna: User, home: Path
) -> None:
    state = run_flow(trained)
    job = jobs.find_job(db, trained.id)
    assert state.is_completed() and state.result()["id"] == job.id
    assert (job.status, job.outcome, job.progress) == (JobStatus.COMPLETED, Outcome.PROMOTED, 100)
    assert active_model(db, anna) == job.model_name == f"emailai-{anna.id}:v1"
    assert served(home) == [job.model_name]
    folder = tools.job_folder(job.id)
    assert not folder.exists(DATASET) and not folder.exists(HELD_OUT) and folder.exists(ADAPTER_GGUF)


def test_adapter_that_is_no_better_than_the_base_is_not_published(
    trained: Job, db: Database, anna: User, home: Path
) -> None:
    write_metrics(trained, base=BETTER, adapter=WORSE)
    assert run_flow(trained).is_completed()
    job = jobs.find_job(db, trained.id)
    assert (job.status, job.outcome) == (JobStatus.COMPLETED, Outcome.NOT_PROVEN)
    assert "3.00 → 4.00" in job.metrics.gate
    assert active_model(db, anna) is None and served(home) == [] and job.model_name is None
    folder = tools.job_folder(job.id)
    assert not folder.exists(DATASET) and not folder.exists(HELD_OUT) and folder.exists(METRICS)


def test_adapter_that_is_worse_than_the_current_one_leaves_that_in_use(
    trained: Job, db: Database, anna: User, adapter: Path
) -> None:
    run_flow(trained)
    second = waiting_job(db, anna)
    shutil.copytree(tools.job_folder(trained.id).path, tools.job_folder(second.id).path)
    for name in (DATASET, HELD_OUT):
        tools.job_folder(second.id).write_text(name, "")
    write_metrics(second, base=5.0, adapter=WORSE, current=BETTER)
    assert run_flow(second).is_completed()
    job = jobs.find_job(db, second.id)
    assert (job.version, job.outcome) == (2, Outcome.KEPT_CURRENT)
    assert active_model(db, anna) == f"emailai-{anna.id}:v1"


# ---- refused and failed ------------------------------------------------------------------------------


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_by_another(path: Path) -> None:
    write_adapter(path, seed=99)


@pytest.mark.parametrize("spoil", [damage, replace_by_another], ids=["cut off", "another adapter"])
def test_adapter_file_that_is_not_what_was_judged_is_refused_and_the_user_keeps_theirs(
    trained: Job, db: Database, anna: User, home: Path, spoil: Any
) -> None:
    with db.connection() as connection:
        connection.execute('UPDATE "User" SET "aiModel" = %s WHERE "id" = %s', ("emailai-anna:v0", anna.id))
    before = users.find_user(db, anna.id)
    spoil(file_in(tools.job_folder(trained.id), ADAPTER_GGUF))
    state = run_flow(trained)
    job = jobs.find_job(db, trained.id)
    assert state.is_failed()
    assert (job.status, job.error_code, job.stage) == (JobStatus.FAILED, AdapterRefused.code, Stage.PUBLISH)
    assert users.find_user(db, anna.id) == before
    assert served(home) == []
    assert tools.job_folder(job.id).exists(ADAPTER_GGUF)


def test_consent_withdrawn_while_it_trained_stops_the_job_before_publishing(
    trained: Job, db: Database, anna: User, home: Path
) -> None:
    users.withdraw_consent(db, anna.id)
    assert run_flow(trained).is_failed()
    job = jobs.find_job(db, trained.id)
    assert (job.status, job.error_code) == (JobStatus.FAILED, NoConsent.code)
    assert served(home) == [] and active_model(db, anna) is None


def test_cancel_while_it_waited_ends_the_job_and_deletes_its_folder(
    trained: Job, db: Database, home: Path
) -> None:
    with db.connection() as connection:
        connection.execute(
            'UPDATE "FineTuningJob" SET "cancelRequested" = true WHERE "id" = %s', (trained.id,)
        )
    assert run_flow(trained).is_cancelled()
    assert jobs.find_job(db, trained.id).status is JobStatus.CANCELLED
    assert not Path(tools.job_folder(trained.id).path).exists()
    assert served(home) == []


def test_fault_that_nobody_foresaw_fails_the_job_by_its_type_alone(
    trained: Job, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise KeyError(SECRET_WORD)

    monkeypatch.setattr("tasks.prove.decide", explode)
    assert run_flow(trained).is_failed()
    job = jobs.find_job(db, trained.id)
    assert (job.status, job.error_code, job.stage) == (JobStatus.FAILED, "INTERNAL", Stage.EVALUATE)
    assert "KeyError" in str(job.error_message) and SECRET_WORD not in str(job.error_message)


def test_samples_that_cannot_be_written_cost_no_verified_adapter(
    trained: Job, db: Database, anna: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.publish.prompt_messages", lambda prompt: [])  # the engine refuses this
    assert run_flow(trained).is_completed()
    job = jobs.find_job(db, trained.id)
    assert job.outcome is Outcome.PROMOTED and active_model(db, anna) == job.model_name
    assert [e.level for e in jobs.events(db, job.id) if e.message.startswith("No samples")] == ["warn"]


# ---- the engine is away ------------------------------------------------------------------------------


@pytest.fixture
def ollama(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaServer]:
    """An Ollama that the flow publishes to, and two quick retries instead of a minute of growing pauses."""
    from tasks.publish import publish_adapter, write_samples

    with OllamaServer(tmp_path / "ollama") as server:
        server.preload_base("smollm2:135m", smollm2_gguf())
        monkeypatch.setenv("OLLAMA_BASE_URL", server.url)
        tools.settings.cache_clear()
        for task in (publish_adapter, write_samples):
            monkeypatch.setattr(task, "retries", 2)
            monkeypatch.setattr(task, "retry_delay_seconds", [0.1, 0.1])
        yield server


def test_busy_engine_is_tried_again_until_it_takes_the_adapter(
    trained: Job, db: Database, anna: User, ollama: OllamaServer
) -> None:
    ollama.fail_next("/api/create", 2, 503)
    assert run_flow(trained).is_completed()
    job = jobs.find_job(db, trained.id)
    assert job.outcome is Outcome.PROMOTED
    user = users.find_user(db, anna.id)
    assert (user.ai_provider, user.ai_model) == ("ollama", job.model_name)
    assert sum(request.path == "/api/create" for request in ollama.requests) == 3


def test_engine_that_stays_busy_fails_the_job_and_retry_publishes_what_was_kept(
    trained: Job, db: Database, anna: User, ollama: OllamaServer
) -> None:
    ollama.fail_next("/api/create", 3, 503)
    assert run_flow(trained).is_failed()
    failed = jobs.find_job(db, trained.id)
    assert (failed.error_code, failed.stage) == ("SERVING_UNAVAILABLE", Stage.PUBLISH)
    assert tools.job_folder(failed.id).exists(ADAPTER_GGUF) and active_model(db, anna) is None

    assert run_flow(jobs.requeue_job(db, failed.id)).is_completed()
    assert jobs.find_job(db, failed.id).outcome is Outcome.PROMOTED
    assert active_model(db, anna) == f"emailai-{anna.id}:v1"


# ---- taking a job up ---------------------------------------------------------------------------------


def test_run_without_a_job_makes_one_and_says_in_it_what_is_missing(db: Database, anna: User) -> None:
    """What a start from Prefect's page, or `python -m flows.train_user`, does."""
    from flows.train_user import train_user

    with pytest.raises(NotEnoughMail, match="100"):
        train_user("anna@example.net")
    (job,) = jobs.list_jobs(db, anna.id)
    assert (job.status, job.error_code, job.stage) == (JobStatus.FAILED, NotEnoughMail.code, Stage.PREPARE)


def test_second_run_for_a_person_is_refused_and_leaves_the_first_alone(db: Database, anna: User) -> None:
    from flows.train_user import train_user

    first = take_up(db, waiting_job(db, anna).id, "another-run")
    with pytest.raises(JobAlreadyActive, match=first.id):
        train_user(anna.id)
    assert jobs.find_job(db, first.id) == first


def test_run_leaves_a_job_alone_that_has_ended_or_that_another_run_is_at_work_on(
    db: Database, anna: User
) -> None:
    job = take_up(db, waiting_job(db, anna).id, "another-run")
    jobs.enter_stage(db, job.id, Stage.EXTRACT)
    at_work = jobs.find_job(db, job.id)
    assert "another-run" in run_flow(job).message
    assert jobs.find_job(db, job.id) == at_work
    jobs.mark_cancelled(db, job.id)
    ended = jobs.find_job(db, job.id)
    assert "already ended" in run_flow(job).message
    assert jobs.find_job(db, job.id) == ended


# ---- a cohort ----------------------------------------------------------------------------------------


def cohort_job(home: Path, job_id: str, dataset: str) -> JobFolder:
    folder = JobFolder(str(home / "storage"), job_id)
    folder.write_text(DATASET, dataset)
    folder.write_text(HELD_OUT, dataset)
    config = load_train_config("cpu-smoke", {"max_steps": 2, "batch_tokens": 128, "lora": {"rank": 2}})
    spec = JobSpec(job_id=job_id, base_model=BASE, version=1, train_config=config.model_dump(mode="json"))
    folder.write_json(SPEC, spec.to_json_dict())
    return folder


def examples(count: int) -> str:
    return to_jsonl(
        [
            Example(
                id=f"m{n}",
                thread_id=f"t{n}",
                instruction="Write an email about: planks",
                output=f"right then. plank {n} is dry and goes in on friday.",
            )
            for n in range(count)
        ]
    )


@pytest.fixture
def storage(home: Path, base_cache: Path) -> str:
    smollm2_gguf()
    (home / "cache").symlink_to(base_cache)
    return str(home / "storage")


def test_bad_job_does_not_stop_its_neighbours(home: Path, storage: str) -> None:
    from flows.train_adapters import train_adapters

    broken = cohort_job(home, "broken", f"{{{SECRET_WORD}")
    stopped = cohort_job(home, "stopped", examples(8))
    stopped.write_text(CANCEL, "")
    good = cohort_job(home, "good", examples(8))
    results = train_adapters(["broken", "stopped", "good"], BASE, storage)
    assert [(result["jobId"], result["ok"]) for result in results] == [
        ("broken", False),
        ("stopped", False),
        ("good", True),
    ]
    assert (results[0]["errorCode"], results[1]["errorCode"]) == ("CONFIG", "CANCELLED")
    for folder in (broken, stopped):
        assert folder.read_json(ERROR)["code"] and not folder.exists(METRICS)
    assert SECRET_WORD not in json.dumps(results) + broken.read_text(ERROR)
    metrics = good.read_json(METRICS)
    assert metrics["training"]["steps"] == 2
    assert metrics["adapterDigest"] == file_digest(file_in(good, ADAPTER_GGUF))
    measured = MeasuredLosses.model_validate(metrics["losses"])
    assert len(measured.base.held_out) == len(measured.candidate.held_out) == 8
    assert measured.current is None and measured.references == {}


def test_cohort_of_which_nothing_was_trained_fails(home: Path, storage: str) -> None:
    from flows.train_adapters import train_adapters

    cohort_job(home, "empty", "")
    with pytest.raises(OwnvoiceError, match="None of the 1 jobs"):
        train_adapters(["empty"], BASE, storage)


def test_cohort_whose_jobs_were_all_cancelled_ends_cancelled(home: Path, storage: str) -> None:
    from flows.train_adapters import train_adapters

    cohort_job(home, "stopped", examples(8)).write_text(CANCEL, "")
    assert train_adapters(["stopped"], BASE, storage, return_state=True).is_cancelled()


def test_training_that_is_finished_is_not_repeated(home: Path, storage: str) -> None:
    from flows.train_adapters import train_adapters

    done = cohort_job(home, "done", "")
    done.write_json(METRICS, {"kept": True})
    (result,) = train_adapters(["done"], BASE, storage)
    assert result["ok"] and done.read_json(METRICS) == {"kept": True}
