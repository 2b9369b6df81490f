"""`ownvoice compare` with the real engine: who answers, what is stored, what is refused in one sentence."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app.cli import app
from serving.adapter_folder import AdapterFolder
from store import jobs, users
from store.database import Database
from store.importers import import_mailbox
from tests.adapters import write_adapter
from tests.command_sessions import closed_sessions
from tests.voices import at_the_gate, promote, put_in_folder
from training.comparison import COMPARED_INSTRUCTIONS, JUDGE_INSTRUCTIONS
from training.errors import ConfigError, OwnvoiceError, ServingError
from training.panel import PERSONAS, read_persona
from training.schemas import GateDecision, JobMetrics, Outcome, User

__all__ = ["closed_sessions"]
pytestmark = pytest.mark.usefixtures("closed_sessions")
KIT = PERSONAS / "kit.jsonl"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(folder / f"{seed}.gguf", seed=seed) for seed in (1, 2)]


@pytest.fixture
def kit(home: Path, db: Database, adapters: list[Path], monkeypatch: pytest.MonkeyPatch) -> User:
    """Kit of the panel with an imported mailbox and two promoted versions; only the second has a decision."""
    monkeypatch.setenv("COLUMNS", "160")
    # The six shipped prompts and the eight of the judge take a minute with every version.
    monkeypatch.setattr("app.compare.COMPARED_INSTRUCTIONS", COMPARED_INSTRUCTIONS[:2])
    monkeypatch.setattr("app.compare.JUDGE_INSTRUCTIONS", JUDGE_INSTRUCTIONS[:3])
    user = users.create_user(db, "kit.ballantyne@example.org", user_id="kit", consent=True)
    import_mailbox(db, user, KIT)
    for adapter in adapters:
        job = promote(db, user, at_the_gate(db, user, adapter))
        put_in_folder(home / "adapters", str(job.model_name), adapter)
    decision = GateDecision(outcome=Outcome.PROMOTED, reason="Good.", numbers={"gain": 0.25})
    jobs.record(db, job.id, metrics=JobMetrics(decision=decision))
    return user


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", "kit", "--max-tokens", "6", *arguments])


def compared(*arguments: str) -> dict[str, Any]:
    shown = run("--json", *arguments)
    assert shown.exit_code == 0, shown.exception
    told: dict[str, Any] = json.loads(shown.stdout)
    return told


def answers(told: dict[str, Any]) -> list[list[str]]:
    return [[answer["text"] for answer in version["answers"]] for version in told["versions"]]


def test_base_current_and_previous_answer_the_same_prompts_with_fixed_seeds(kit: User, home: Path) -> None:
    first = compared("--no-scores")
    assert [v["title"] for v in first["versions"]] == ["base", "version 2 (in use)", "version 1"]
    assert all(len(v["answers"]) == len(first["prompts"]) == 2 for v in first["versions"])
    assert len({tuple(texts) for texts in answers(first)}) == 3
    # In the reverse order, and the seeds are those of the prompts all the same.
    second = compared("--no-scores", "--versions", "1,2")
    assert [v["title"] for v in second["versions"]] == ["base", "version 1", "version 2 (in use)"]
    base, current, previous = answers(first)
    assert answers(second) == [base, previous, current]
    page = Path(first["html"])
    assert page.parent == home / "reports" / "emailai-kit" and stat.S_IMODE(page.stat().st_mode) == 0o600
    assert [v["decision"] and v["decision"]["numbers"] for v in first["versions"]] == [
        None,
        {"gain": 0.25},
        None,
    ]


def test_scores_are_measured_on_these_answers_and_no_mail_gets_into_the_report(
    kit: User, tmp_path: Path
) -> None:
    prompts, page = tmp_path / "prompts.txt", tmp_path / "page.html"
    prompts.write_text("Write about <script>alert(1)</script>\n")
    shown = run("--prompts", str(prompts), "--html", str(page))
    assert shown.exit_code == 0, shown.exception
    html = page.read_text(encoding="utf-8")
    assert f"Report: {page}" in shown.stdout.replace("\n", "")
    assert "<script" not in html and "&lt;script&gt;" in html and html.count("[cut at 6 tokens]") == 3
    persona = read_persona(KIT)
    for text in persona.texts:
        assert text[:40] not in html and text[:40] not in shown.stdout
    told = compared("--prompts", str(prompts), "--html", str(page))
    base, current, previous = told["versions"]
    assert told["ownMails"] == len(persona.train) and told["ownAuthorship"] > base["authorship"]
    assert base["voice"] == pytest.approx(0, abs=1e-9)
    assert None not in (current["voice"], previous["voice"], current["styleDistance"])


def test_without_consent_the_mail_is_not_read(kit: User, db: Database) -> None:
    users.withdraw_consent(db, kit.id)
    told = compared()
    assert told["ownMails"] == 0 and "has not agreed" in told["notice"]


def test_a_version_that_is_gone_is_named_with_those_that_are_left(kit: User, home: Path) -> None:
    AdapterFolder(home / "adapters").remove("emailai-kit:v1")
    for version in ("1", "2,9"):
        shown = run("--versions", version)
        assert isinstance(shown.exception, ConfigError)
        assert str(shown.exception).endswith("Versions that can be compared: 2.")
    # Nobody named version 1: what is left is shown.
    assert [v["title"] for v in compared("--no-scores")["versions"]] == ["base", "version 2 (in use)"]
    AdapterFolder(home / "adapters").remove("emailai-kit:v2")
    shown = run()
    assert isinstance(shown.exception, ServingError) and "Version 2 of" in str(shown.exception)
    assert not (home / "reports").exists() or len(list((home / "reports").rglob("*.html"))) == 1


def test_a_person_without_an_adapter_is_told_how_to_train_one(home: Path, db: Database) -> None:
    users.create_user(db, "anna@example.net", user_id="kit", consent=True)
    for arguments in ((), ("--versions", "1")):
        shown = run(*arguments)
        assert isinstance(shown.exception, OwnvoiceError) and "ownvoice train" in str(shown.exception)


def test_bad_arguments_end_before_an_engine_is_started(
    kit: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.session.open_serving", lambda **_: pytest.fail("an engine was opened"))
    for arguments in (
        ("--versions", "two"),
        ("--versions", "1,2,3,4,5,6,7"),
        ("--prompts", str(tmp_path / "none.txt")),
        ("--html", str(tmp_path / "none" / "page.html")),
    ):
        assert isinstance(run(*arguments).exception, ConfigError)


@pytest.mark.parametrize(
    ("gate", "words"), [("voice: {min_rom: 1}\n", "min_rom"), ("panel: [more]\n", "reference panel more")]
)
def test_the_gate_whose_panel_the_judge_takes_is_read_before_an_engine_is_started(
    gate: str, words: str, kit: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "gate.yaml").write_text(gate)
    monkeypatch.setenv("OWNVOICE_GATE", str(tmp_path / "gate.yaml"))
    monkeypatch.setattr("app.session.open_serving", lambda **_: pytest.fail("an engine was opened"))
    shown = run()
    assert isinstance(shown.exception, ConfigError) and words in str(shown.exception)
