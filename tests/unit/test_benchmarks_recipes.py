"""The recipes and the gate's calibration without a model: what is kept, what is asked, what is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.quality import adapters, arms, gate, recipes
from tests.benchmarks.quality.adapters import Mails
from tests.benchmarks.quality.ledger import Ledger
from training.panel import read_panel
from training.schemas import ChatMessage, Example, Generated, GenerateOptions, MailLoss, Outcome, Published

PERSONAS = {persona.name: persona for persona in read_panel()}
KIT = Mails(PERSONAS["kit"].train, PERSONAS["kit"].held_out)


class Engine:
    """Answers with the person's own kind of words, and counts how often it is asked."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.asked: list[tuple[str | None, int | None]] = []

    def publish(self, adapter: Path, name: str) -> Published:
        return Published(name=name, digest="sha256:" + "0" * 64, engine="double")

    def remove(self, name: str) -> bool:
        return True

    def generate(self, name: str | None, messages: list[ChatMessage], options: GenerateOptions) -> Generated:
        self.asked.append((name, options.seed))
        assert options.seed is not None
        return Generated(text=self.texts[options.seed % len(self.texts)], stopped=name is not None)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "quality.jsonl", "code-1")


@pytest.fixture
def without_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Adapters, losses and the engine of invented numbers; mail and evidence are real (of personas)."""
    folder = tmp_path / "adapters" / "kit"
    double = Engine([text for persona in PERSONAS.values() for text in persona.texts])

    def losses(of: Path | None, examples: Sequence[Example], work: Path) -> tuple[MailLoss, ...]:
        # References (of the same folder here) are as good as the candidate: nobody is told apart.
        nll = 3.0 if of is None else 2.5
        return tuple(MailLoss(example_id=e.id, thread_id=e.thread_id, nll=nll, tokens=40) for e in examples)

    @contextmanager
    def engine(work: Path) -> Iterator[Engine]:
        yield double

    monkeypatch.setattr(arms, "read_mails", lambda mailbox: KIT)
    monkeypatch.setattr(arms, "trained", lambda mailbox, recipe, work: folder)
    monkeypatch.setattr(arms, "trained_sample", lambda mailbox, folder, work: KIT.train)
    monkeypatch.setattr(arms, "references", lambda panel, work: {member.name: folder for member in panel})
    monkeypatch.setattr(arms, "losses", losses)
    monkeypatch.setattr(arms, "engine", engine)
    monkeypatch.setattr(
        arms, "read_course", lambda folder: {"epochs": 3.0, "train_seconds": 90.0, "train_tokens": 30000}
    )
    return double


def leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    if isinstance(value, list | tuple):
        return [leaf for inner in value for leaf in leaves(inner)]
    return [value]


def judged(arm: dict[str, Any], work: Path) -> dict[str, Any]:
    return arms.measure_arm(arms.run_of("kit", arm), work)


def test_a_run_leaves_numbers_and_no_text(without_model: Engine, tmp_path: Path) -> None:
    for arm in (arms.OWN_MAIL, arms.adapter_of("ludo")):
        assert all(isinstance(leaf, int | float | None) for leaf in leaves(judged(arm, tmp_path)))


def test_the_base_as_its_own_candidate_gains_nothing(without_model: Engine, tmp_path: Path) -> None:
    decision = arms.decide(judged(arms.BASE, tmp_path))

    assert decision.numbers["gain"] == 0 and decision.numbers["voice"] == pytest.approx(0)
    assert decision.outcome is not Outcome.PROMOTED


def test_own_mail_stands_where_outputs_stand(without_model: Engine, tmp_path: Path) -> None:
    """All own held-out mails are few enough to be chosen, so they are as near to themselves as can be."""
    numbers = arms.decide(judged(arms.OWN_MAIL, tmp_path)).numbers

    assert numbers["voice"] == pytest.approx(1) and numbers["gapClosed"] == pytest.approx(1)
    assert numbers["stopShare"] == 1


def test_the_base_is_asked_once_for_all_arms_of_a_mailbox(without_model: Engine, tmp_path: Path) -> None:
    judged(arms.adapter_of("kit"), tmp_path)
    asked = len(without_model.asked)
    judged(arms.OWN_MAIL, tmp_path)
    judged(arms.adapter_of("kit"), tmp_path)

    assert len(without_model.asked) == asked
    assert {name for name, _ in without_model.asked} == {None, "emailai-quality-kit:v1"}


def test_an_interrupted_run_of_answers_goes_on_where_it_stopped(tmp_path: Path) -> None:
    prompts = KIT.held_out[:4]
    serving = Engine(["one", "two", "three", "four"])
    found = adapters.answers(None, prompts, serving, tmp_path, seed=20, max_tokens=16)  # type: ignore[arg-type]
    (kept,) = (tmp_path / "answers").glob("*.jsonl")
    lines = kept.read_text().splitlines()
    # Killed while it wrote the third answer.
    kept.write_text("\n".join([*lines[:2], lines[2][:9]]))
    serving.asked.clear()

    again = adapters.answers(None, prompts, serving, tmp_path, seed=20, max_tokens=16)  # type: ignore[arg-type]

    assert again == found
    assert [seed for _, seed in serving.asked] == [22, 23]


def test_answers_lie_where_nobody_else_reads(tmp_path: Path) -> None:
    prompts = KIT.held_out[:1]
    adapters.answers(None, prompts, Engine(["one"]), tmp_path, seed=1, max_tokens=16)  # type: ignore[arg-type]

    assert (tmp_path / "answers").stat().st_mode & 0o077 == 0


def test_the_gate_part_says_what_is_missed_and_what_decides_nothing(
    without_model: Engine, ledger: Ledger, tmp_path: Path
) -> None:
    result = judged(arms.adapter_of("kit"), tmp_path)
    ledger.add(arms.run_of("david", arms.adapter_of("david")), result)

    section = gate.section(ledger)

    row = next(line for line in section.splitlines() if line.startswith("| skill: gain >="))
    assert row.endswith("| 0.50 |")
    assert "| **decision** |" in section
    assert "unseen mail as outputs" not in section  # nothing of it is measured


def test_decisions_follow_thresholds_that_are_changed_after_the_run(
    without_model: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = judged(arms.adapter_of("kit"), tmp_path)
    config = arms.load_gate_config()
    strict = config.model_copy(update={"skill": config.skill.model_copy(update={"min_gain": 0.9})})
    monkeypatch.setattr(arms, "load_gate_config", lambda: strict)

    assert "0.50 and must be at least 0.90" in arms.decide(result).reason


def test_every_recipe_is_a_run_of_its_own_and_ours_is_shared_with_the_gate() -> None:
    keys = {run.key("code") for run in recipes.runs()}

    assert len(keys) == len(recipes.runs())
    shared = keys & {run.key("code") for run in gate.runs()}
    assert len(shared) == len(recipes.MAILBOXES)


def test_panza_is_trained_by_its_own_numbers() -> None:
    config = adapters.config_of(recipes.PANZA)

    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (8, 16, 0.05)
    assert (config.learning_rate, config.epochs, config.schedule) == (1e-5, 5, "linear")
    assert config.validation_fraction == 0


def test_the_table_of_recipes_shows_what_is_measured_and_what_is_not(
    without_model: Engine, ledger: Ledger, tmp_path: Path
) -> None:
    ledger.add(arms.run_of("david", arms.BASE), judged(arms.BASE, tmp_path))
    ledger.add(arms.run_of("david", arms.adapter_of("david")), judged(arms.adapter_of("kit"), tmp_path))
    ledger.add(
        arms.run_of("david", arms.adapter_of("david", recipes.PANZA)), {"diverged": "Flat.", "step": 90}
    )

    lines = recipes.section(ledger).splitlines()

    row = next(line for line in lines if line.startswith("| david | ours"))
    assert "| 2.500 | -0.500 (-0.500 to -0.500) |" in row and "| 3 | 30,000 | 1.5 |" in row
    assert any(line.startswith("| david | Panza's LoRA | ended at step 90 |") for line in lines)
    assert any(line.startswith("| david | TRL with PEFT, defaults | not measured |") for line in lines)


def test_the_best_adapter_of_each_mailbox_is_marked_in_the_matrix(ledger: Ledger) -> None:
    for of, nll in (("david", 2.5), ("pereira-s", 2.9)):
        ledger.add(arms.cross_run("david", of), {"held_out": [[nll, 40]], "base": [[3.0, 40]]})

    section = recipes.section(ledger)

    assert "| adapter of david | **2.500** |" in section
    assert "| adapter of pereira-s | 2.900 |" in section
