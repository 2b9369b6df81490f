"""The two flows as Prefect runs them, in this process: how each stage can end, and what each end leaves."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from prefect.client.orchestration import get_client

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
    LEARNT,
    METRICS,
    OUTPUTS,
    RECIPE,
    REPORT,
    SPEC,
    JobFolder,
)
from tasks.measured import is_measured, read_measured
from tasks.outputs import read_outputs
from tests.adapters import smollm2_gguf, write_adapter
from tests.ollama_server import OllamaServer
from tests.trainings import FINISHED
from training.config import load_train_config
from training.dataset import ChatTemplate, to_jsonl
from training.errors import (
    AdapterRefused,
    ContextExceeded,
    JobAlreadyActive,
    NoConsent,
    NotEnoughMail,
    OwnvoiceError,
    ServingUnavailable,
    StorageError,
    StoreError,
)
from training.evidence import Outputs
from training.gate_config import GateConfig
from training.schemas import (
    ArmLosses,
    ChatMessage,
    DataReport,
    Example,
    Generated,
    GenerateOptions,
    Job,
    JobSpec,
    JobStatus,
    MailLoss,
    MeasuredLosses,
    Outcome,
    Stage,
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


def losses(which: str, nll: float, count: int = 6) -> tuple[MailLoss, ...]:
    return tuple(
        MailLoss(example_id=f"{which}{n}", thread_id=f"{which}{n}", nll=nll, tokens=50) for n in range(count)
    )


def arm(nll: float) -> ArmLosses:
    return ArmLosses(
        held_out=losses("h", nll),
        train=losses("t", nll),
        neutral=losses("n", 2.0),
        swapped=losses("n", 3.5),
        personas=losses("p", 3.0),
    )


def mails(which: str, count: int) -> list[Example]:
    return [
        Example(
            id=f"{which}{n}",
            thread_id=f"{which}{n}",
            instruction=f"Write an email about: plank {n}",
            output=f"right then. plank {n} is dry and goes in on friday. {SECRET_WORD}",
        )
        for n in range(count)
    ]


def write_mail(folder: JobFolder, *, held_out: int = 6) -> None:
    folder.write_text(DATASET, to_jsonl(mails("t", 12)))
    folder.write_text(HELD_OUT, to_jsonl(mails("h", held_out)))


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
    write_mail(folder)
    report = DataReport(sent=120, usable=110, train=90, held_out=20, eligible=True, reason="Enough.")
    folder.write_json(REPORT, report.to_json_dict())
    folder.write_json(RECIPE, {"chatTemplate": chat_template().to_json_dict()})
    shutil.copy(adapter, file_in(folder, ADAPTER_GGUF))
    write_metrics(job, base=WORSE, adapter=BETTER)
    return job


def retrained(db: Database, user: User, first: Job) -> Job:
    """Return the next waiting job of a person, trained as the first one that is over."""
    job = waiting_job(db, user)
    folder = tools.job_folder(job.id)
    shutil.copytree(tools.job_folder(first.id).path, folder.path)
    write_mail(folder)
    return job


def file_in(folder: JobFolder, name: str) -> Path:
    return Path(folder.path) / name


def write_metrics(job: Job, **held_out: float) -> None:
    folder = tools.job_folder(job.id)
    numbers = {
        "gpuSeconds": 12.0,
        "training": FINISHED.to_json_dict(),
        "adapterDigest": file_digest(file_in(folder, ADAPTER_GGUF)),
        "losses": MeasuredLosses(
            base=arm(held_out["base"]),
            candidate=arm(held_out["adapter"]),
            current=arm(held_out["current"]) if "current" in held_out else None,
        ).to_json_dict(),
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
    assert "the gain over the base (nat per token) is -1 and must be at least 0" in job.metrics.gate
    assert active_model(db, anna) is None and served(home) == [] and job.model_name is None
    folder = tools.job_folder(job.id)
    assert not folder.exists(DATASET) and not folder.exists(HELD_OUT) and folder.exists(METRICS)


def test_adapter_that_is_worse_than_the_current_one_leaves_that_in_use(
    trained: Job, db: Database, anna: User, adapter: Path
) -> None:
    run_flow(trained)
    second = retrained(db, anna, trained)
    write_metrics(second, base=5.0, adapter=WORSE, current=BETTER)
    assert run_flow(second).is_completed()
    job = jobs.find_job(db, second.id)
    assert (job.version, job.outcome) == (2, Outcome.KEPT_CURRENT)
    assert active_model(db, anna) == f"emailai-{anna.id}:v1"


# ---- what the arms write -----------------------------------------------------------------------------


class Questions:
    """What the engine is asked while the arms answer; `then` acts before each answer."""

    def __init__(self) -> None:
        self.answered: list[tuple[str | None, str, int | None]] = []
        self.then: Callable[[], object] = lambda: None
        self.says: str | None = None
        """Instead of what the engine would write."""

    def of(self, name: str | None) -> list[tuple[str, int | None]]:
        return [(prompt, seed) for asked, prompt, seed in self.answered if asked == name]


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> Questions:
    found, generate = Questions(), LlamaCppServing.generate

    def spied(
        self: LlamaCppServing, name: str | None, messages: list[ChatMessage], options: GenerateOptions
    ) -> Generated:
        if "plank" not in messages[-1].content:  # a warm-up or a sample
            return generate(self, name, messages, options)
        found.then()
        answer = generate(self, name, messages, options)
        found.answered.append((name, messages[-1].content, options.seed))
        return answer if found.says is None else Generated(text=found.says, stopped=True)

    monkeypatch.setattr(LlamaCppServing, "generate", spied)
    # One after another, so that a test can say before which answer something happens.
    monkeypatch.setattr("serving.engines.MOST_LANES", 1)
    return found


def test_arms_answer_the_same_prompts_with_the_same_seeds_and_the_base_the_judges_too(
    trained: Job, anna: User, questions: Questions
) -> None:
    assert run_flow(trained).is_completed()
    candidate = questions.of(f"emailai-{anna.id}:v1")
    assert candidate == [("Write an email about: plank 1", 17), ("Write an email about: plank 4", 18)]
    assert questions.of(None) == [
        *candidate,
        ("Write an email about: plank 3", 17),
        ("Write an email about: plank 9", 18),
    ]


@pytest.mark.parametrize("there", [True, False])
def test_adapter_in_use_answers_too_and_the_row_says_when_it_cannot(
    trained: Job, db: Database, anna: User, home: Path, questions: Questions, there: bool
) -> None:
    run_flow(trained)
    in_use = f"emailai-{anna.id}:v1"
    second = retrained(db, anna, trained)
    write_metrics(second, base=5.0, adapter=WORSE, current=BETTER)
    questions.answered.clear()
    if not there:
        LlamaCppServing(smollm2_gguf(), home / "adapters").remove(in_use)
    assert run_flow(second).is_completed()
    assert len(questions.of(in_use)) == (2 if there else 0)
    warned = [event for event in jobs.events(db, second.id) if "cannot be asked" in event.message]
    assert len(warned) == (0 if there else 1)
    decision = jobs.find_job(db, second.id).metrics.decision
    assert decision is not None and ("styleOfCurrent" in decision.numbers) is there


def test_what_the_gate_saw_stands_in_the_row(trained: Job, db: Database) -> None:
    run_flow(trained)
    job = jobs.find_job(db, trained.id)
    metrics = job.metrics
    assert metrics.decision is not None and metrics.gate == metrics.decision.reason
    assert {check.metric for check in metrics.decision.checks} >= {"skill", "style", "harm"}
    assert (metrics.held_out_nll_base, metrics.held_out_nll_adapter) == (WORSE, BETTER)
    assert metrics.loss_curve == ((1, 4.0), (6, 3.1))
    assert job.timings["evaluate"] > 0.5, "the answers are part of the stage"
    entered = [e.data["stage"] for e in jobs.events(db, job.id) if "stage" in e.data]
    assert entered == ["evaluate", "publish", "activate"], "each once; the others were over before"


def test_refused_adapter_was_asked_and_leaves_nothing_in_the_engine(
    trained: Job, db: Database, anna: User, home: Path, questions: Questions
) -> None:
    write_metrics(trained, base=BETTER, adapter=WORSE)
    assert run_flow(trained).is_completed()
    assert len(questions.of(f"emailai-{anna.id}:v1")) == 2
    assert served(home) == [] and jobs.find_job(db, trained.id).model_name is None
    assert not tools.job_folder(trained.id).exists(OUTPUTS)


def at(count: int, questions: Questions, act: Callable[[], object]) -> Callable[[], None]:
    """Return what acts before the answer that follows `count` others."""

    def then() -> None:
        if len(questions.answered) == count:
            act()

    return then


def fail_with(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def test_crash_between_two_answers_costs_none_that_was_given(
    trained: Job, db: Database, home: Path, questions: Questions
) -> None:
    questions.then = at(5, questions, fail_with(OSError(SECRET_WORD)))
    assert run_flow(trained).is_failed()
    failed = jobs.find_job(db, trained.id)
    assert (failed.status, failed.stage) == (JobStatus.FAILED, Stage.EVALUATE)
    assert SECRET_WORD not in str(failed.error_message)
    assert 85 < failed.progress < 90
    assert served(home) == [] and failed.model_name is None

    questions.then = lambda: None
    assert run_flow(jobs.requeue_job(db, failed.id)).is_completed()
    assert jobs.find_job(db, failed.id).outcome is Outcome.PROMOTED
    assert len(questions.answered) == len(set(questions.answered)) == 6


def test_answers_of_another_adapter_are_not_gone_on_from(
    trained: Job, db: Database, questions: Questions
) -> None:
    questions.then = at(5, questions, fail_with(OSError()))
    run_flow(trained)
    questions.then = lambda: None
    write_adapter(file_in(tools.job_folder(trained.id), ADAPTER_GGUF), seed=99)
    write_metrics(trained, base=WORSE, adapter=BETTER)
    assert run_flow(jobs.requeue_job(db, trained.id)).is_completed()
    assert len(questions.answered) == 5 + 2, "the base's four answers hold, the one of the adapter does not"


@pytest.mark.usefixtures("hurried")
def test_engine_that_goes_away_between_two_answers_is_asked_for_the_rest(
    trained: Job, db: Database, questions: Questions
) -> None:
    away = iter((False, False, True, False, True))
    error = ServingUnavailable("The engine is away. Try again.")
    questions.then = lambda: fail_with(error)() if next(away, False) else None
    assert run_flow(trained).is_completed()
    assert jobs.find_job(db, trained.id).outcome is Outcome.PROMOTED
    assert len(questions.answered) == len(set(questions.answered)) == 6


def test_cancel_between_two_answers_leaves_nothing(
    trained: Job, db: Database, home: Path, questions: Questions
) -> None:
    served_then: list[list[str]] = []

    def cancel() -> None:
        served_then.append(served(home))
        jobs.request_cancel(db, trained.id)

    questions.then = at(4, questions, cancel)
    assert run_flow(trained).is_cancelled()
    job = jobs.find_job(db, trained.id)
    assert served_then != [[]] and len(questions.answered) == 5
    assert (job.status, job.model_name) == (JobStatus.CANCELLED, None)
    assert served(home) == [] and not Path(tools.job_folder(job.id).path).exists()


def test_prompt_that_the_context_cannot_hold_counts_for_no_arm(
    trained: Job, db: Database, questions: Questions
) -> None:
    asked = iter(range(100))
    error = ContextExceeded("The prompt has 3000 tokens; the context holds 2048.")
    questions.then = lambda: fail_with(error)() if next(asked) == 4 else None
    assert run_flow(trained).is_completed()
    decision = jobs.find_job(db, trained.id).metrics.decision
    assert decision is not None and decision.numbers["outputs"] == 1
    told = [e.message for e in jobs.events(db, trained.id) if "left out" in e.message]
    assert told == ["1 of 6 answers do not fit into the engine's context; their prompts are left out"]


def test_fifteen_held_out_mails_prove_nothing(
    trained: Job, db: Database, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = tmp_path / "gate.yaml"
    strict.write_text("for_tests: true\noutputs: 2\njudge_outputs: 2\nmax_tokens: 16\ndraws: 200\n")
    monkeypatch.setenv("OWNVOICE_GATE", str(strict))
    tools.settings.cache_clear()
    write_mail(tools.job_folder(trained.id), held_out=15)
    assert run_flow(trained).is_completed()
    job = jobs.find_job(db, trained.id)
    assert job.outcome is Outcome.NOT_PROVEN
    assert "15 held-out mails are too few to judge an adapter by; 20 are needed" in job.metrics.gate
    assert served(home) == []


def test_nothing_that_the_arms_wrote_is_in_prefect_or_in_the_job(
    trained: Job, db: Database, questions: Questions
) -> None:
    questions.says = "the quagga ate seven planks"
    assert run_flow(trained).is_completed() and len(questions.answered) == 6
    job = jobs.find_job(db, trained.id)
    rows = [job.to_json_dict(), *(event.to_json_dict() for event in jobs.events(db, job.id))]
    assert "quagga" not in json.dumps(rows, default=str)
    with get_client(sync_client=True) as client:
        for path in ("logs/filter", "artifacts/filter", "task_runs/filter", "flow_runs/filter"):
            kept = client.request("POST", f"/{path}", json={"limit": 200})  # type: ignore[arg-type]
            assert kept.json() and "quagga" not in kept.text, path
    files = [path for path in Path(tools.job_folder(job.id).path).rglob("*") if path.is_file()]
    assert files and not any(b"quagga" in path.read_bytes() for path in files)


def test_numbers_of_an_earlier_version_are_measured_again_and_never_judged_by(trained: Job) -> None:
    folder = tools.job_folder(trained.id)
    assert is_measured(folder)
    old = {name: value for name, value in folder.read_json(METRICS).items() if name != "losses"}
    folder.write_json(METRICS, old | {"heldOut": {"base": [], "adapter": []}})
    assert not is_measured(folder)
    with pytest.raises(StorageError, match=f"ownvoice retry {trained.id}"):
        read_measured(folder)


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
    assert (job.status, job.error_code, job.stage) == (JobStatus.FAILED, AdapterRefused.code, Stage.EVALUATE)
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


@pytest.mark.parametrize("learnt", [True, False])
def test_answers_are_compared_with_mail_that_only_the_adapter_gone_on_from_learnt(
    trained: Job, db: Database, monkeypatch: pytest.MonkeyPatch, learnt: bool
) -> None:
    passage = "the blue tug that my uncle left at the lock last winter needs a new rope"
    if learnt:
        old = mails("o", 1)[0].model_copy(update={"output": passage})
        tools.job_folder(trained.id).write_text(LEARNT, to_jsonl([old]))

    def recite(folder: JobFolder, config: GateConfig) -> Outputs:
        read = read_outputs(folder, config)
        return replace(read, candidate=[replace(output, text=passage) for output in read.candidate])

    monkeypatch.setattr("tasks.prove.read_outputs", recite)
    assert run_flow(trained).is_completed()
    decision = jobs.find_job(db, trained.id).metrics.decision
    assert decision is not None and decision.numbers["copies"] == (2 if learnt else 0)
    assert not tools.job_folder(trained.id).exists(LEARNT)


def test_fault_that_nobody_foresaw_fails_the_job_by_its_type_alone(
    trained: Job, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise KeyError(SECRET_WORD)

    monkeypatch.setattr("tasks.prove.decide_full", explode)
    assert run_flow(trained).is_failed()
    job = jobs.find_job(db, trained.id)
    assert (job.status, job.error_code, job.stage) == (JobStatus.FAILED, "FAILED", Stage.EVALUATE)
    assert "KeyError" in str(job.error_message) and SECRET_WORD not in str(job.error_message)


def test_fault_after_the_adapter_was_activated_takes_it_from_nobody(
    trained: Job, db: Database, anna: User, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.publish.forget_mail", lambda job_id: fail_with(OSError())())
    assert run_flow(trained).is_failed()
    job = jobs.find_job(db, trained.id)
    assert job.status is JobStatus.COMPLETED
    assert served(home) == [job.model_name] == [active_model(db, anna)]


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
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two quick retries instead of a minute of growing pauses."""
    from tasks.outputs import write_outputs
    from tasks.publish import publish_adapter, withdraw_adapter, write_samples

    for task in (write_outputs, publish_adapter, withdraw_adapter, write_samples):
        monkeypatch.setattr(task, "retries", 2)
        monkeypatch.setattr(task, "retry_delay_seconds", [0.1, 0.1])


@pytest.fixture
def ollama(
    tmp_path: Path, home: Path, hurried: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OllamaServer]:
    """An Ollama that the flow publishes to."""
    with OllamaServer(tmp_path / "ollama") as server:
        server.preload_base("smollm2:135m", smollm2_gguf())
        monkeypatch.setenv("OLLAMA_BASE_URL", server.url)
        tools.settings.cache_clear()
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
    assert (failed.error_code, failed.stage) == ("SERVING_UNAVAILABLE", Stage.EVALUATE)
    assert failed.metrics.steps and failed.metrics.held_out_nll_adapter, "its training is on record already"
    assert tools.job_folder(failed.id).exists(ADAPTER_GGUF) and active_model(db, anna) is None

    assert run_flow(jobs.requeue_job(db, failed.id)).is_completed()
    assert jobs.find_job(db, failed.id).outcome is Outcome.PROMOTED
    assert active_model(db, anna) == f"emailai-{anna.id}:v1"


# ---- taking a job up ---------------------------------------------------------------------------------


def test_database_that_is_away_while_the_data_set_is_made_is_tried_again(
    db: Database, anna: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mail passes from reading to preparing in memory only, so the second try reads it again."""
    from flows.train_user import train_user
    from tasks import data

    away = iter([StoreError("The database is away.")])
    really = jobs.record

    def record(*arguments: object, **values: object) -> None:
        if "training_emails" in values:  # written in PREPARE
            for error in away:
                raise error
        really(*arguments, **values)  # type: ignore[arg-type]

    monkeypatch.setattr(data.jobs, "record", record)
    monkeypatch.setattr(data.prepare_data, "retry_delay_seconds", [0.1, 0.1])
    with pytest.raises(NotEnoughMail, match="100"):
        train_user(anna.id)
    (job,) = jobs.list_jobs(db, anna.id)
    assert job.error_code == NotEnoughMail.code and next(away, None) is None


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
