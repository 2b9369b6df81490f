"""One arm of the quality benchmark for real: a few steps, two answers of the embedded engine, a decision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.quality import adapters, arms
from tests.benchmarks.quality.ledger import Run
from tests.benchmarks.quality.measure import measure
from training.gate_config import GateConfig, load_gate_config
from training.settings import PROJECT_ROOT

SAMPLE = "merrin"
"""Not among the real mailboxes, so the invented sample stands for it."""


@pytest.fixture
def lax_gate(monkeypatch: pytest.MonkeyPatch) -> GateConfig:
    """Two short answers and no reference adapters."""
    config = load_gate_config(PROJECT_ROOT / "tests" / "gate.yaml")
    monkeypatch.setattr(arms, "load_gate_config", lambda: config)
    return config


def short_run(lax: GateConfig, recipe: dict[str, Any]) -> Run:
    asked = {name: getattr(lax, name) for name in arms.GENERATION}
    return Run(arms.KIND, SAMPLE, {"arm": arms.adapter_of(SAMPLE, recipe), "generation": asked})


def test_an_arm_is_trained_and_answers_once_and_is_judged(
    lax_gate: GateConfig, base_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").symlink_to(base_cache)
    run = short_run(lax_gate, {"preset": "cpu-smoke"})

    found = measure(run, tmp_path)

    decision = arms.decide(found)
    assert decision.numbers["outputs"] == 2 and decision.numbers["heldOutMails"] >= 20
    assert found["course"]["steps"] == 6 and decision.numbers["gain"] > 0

    def must_not(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    for name in ("train", "_measure_losses"):
        monkeypatch.setattr(adapters, name, must_not)
    monkeypatch.setattr(adapters.LlamaCppServing, "generate", must_not)
    assert measure(run, tmp_path) == found


def test_recipes_in_mails_and_steps_are_trained_by_their_own_numbers(
    lax_gate: GateConfig, base_cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache").symlink_to(base_cache)
    recipe = {"preset": "cpu-smoke", "overrides": {"epochs": 2}, "mails_per_step": 8, "warmup_steps": 3}

    folder = adapters.trained(SAMPLE, recipe, tmp_path)

    config = adapters.read_course(folder)["config"]
    mails = len(adapters.read_mails(SAMPLE).train)
    steps = round(3 / config["warmup_fraction"])
    assert 0.7 <= 8 * steps / (2 * mails) <= 1.4  # about eight mails a step, over two epochs
    assert (folder / "adapter.gguf").is_file()
