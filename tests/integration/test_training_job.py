"""One job on the GPU side with a reference panel: trained once per machine, measured, and stopped in time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks import train
from tasks.job_folder import (
    ADAPTER_GGUF,
    CANCEL,
    DATASET,
    ERROR,
    HELD_OUT,
    METRICS,
    PANEL,
    PROGRESS,
    SPEC,
    JobFolder,
)
from tasks.train import train_job
from tests.adapters import smollm2_gguf
from tests.bases import persona_mails
from training import references
from training.config import load_train_config
from training.dataset import to_jsonl
from training.panel_file import PanelMember, to_panel_jsonl
from training.schemas import Example, JobSpec, MeasuredLosses, TrainingProgress

pytestmark = pytest.mark.usefixtures("prefect")
BASE = "smollm2-135m"
CONFIG = load_train_config("cpu-smoke", {"max_steps": 2, "batch_tokens": 128, "lora": {"rank": 2}})


def mails(opening: str, count: int) -> tuple[Example, ...]:
    return tuple(
        example.model_copy(update={"output": f"{opening} {example.output[:40]}"})
        for example in persona_mails(count)
    )


KIT = PanelMember("kit", mails("hiya!!", 6), mails("hey hey", 3))
LUDO = PanelMember("ludo", mails("Dear all,", 6), mails("Dear Sir,", 3))


@pytest.fixture
def storage(home: Path, base_cache: Path) -> Iterator[str]:
    """A machine that has the base's weights and no reference adapters yet."""
    smollm2_gguf()
    (home / "cache").mkdir()
    for folder in base_cache.glob(f"{BASE}-*"):
        (home / "cache" / folder.name).symlink_to(folder)
    train._BASES.clear()
    yield str(home / "storage")
    train._BASES.clear()


def put_job(storage: str, job_id: str, *personas: PanelMember) -> JobFolder:
    folder = JobFolder(storage, job_id)
    folder.write_text(DATASET, to_jsonl(mails("ahoy", 8)))
    folder.write_text(HELD_OUT, to_jsonl(mails("avast", 4)))
    folder.write_text(PANEL, to_panel_jsonl(personas))
    spec = JobSpec(job_id=job_id, base_model=BASE, version=1, train_config=CONFIG.model_dump(mode="json"))
    folder.write_json(SPEC, spec.to_json_dict())
    return folder


def losses_in(folder: JobFolder) -> MeasuredLosses:
    return MeasuredLosses.model_validate(folder.read_json(METRICS)["losses"])


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What was written to progress.json: phase, and which reference adapter of how many."""
    seen: list[tuple[str, int, int]] = []
    real = JobFolder.write_json

    def noting(folder: JobFolder, name: str, data: dict[str, Any]) -> None:
        if name == PROGRESS:
            now = TrainingProgress.model_validate(data)
            seen.append((now.phase, now.reference, now.references))
        real(folder, name, data)

    monkeypatch.setattr(JobFolder, "write_json", noting)
    return seen


def test_the_first_job_of_a_machine_trains_the_panel_and_the_next_one_finds_it(
    storage: str, home: Path, phases: list[tuple[str, int, int]]
) -> None:
    first = put_job(storage, "first", KIT, LUDO)
    assert train_job("first", storage).ok
    assert ("panel", 1, 2) in phases and ("panel", 2, 2) in phases
    assert [phase for phase in dict.fromkeys(phase for phase, _, _ in phases)] == [
        "load",
        "panel",
        "train",
        "held_out",
        "export",
    ]
    losses = losses_in(first)
    assert list(losses.references) == ["kit", "ludo"]
    assert losses.references["kit"] != losses.references["ludo"]
    for name in ("kit", "ludo"):
        assert len(losses.references[name]) == len(losses.base.held_out) == 4
    assert len(losses.candidate.personas) == 6 and len(losses.candidate.neutral) == 10
    assert 0 < len(losses.candidate.train) <= 8
    metrics = first.read_json(METRICS)
    assert metrics["panelSeconds"] > 0 and "heldOut" not in metrics
    assert len(list((home / "cache" / "panel").glob("*/*/adapter_model.safetensors"))) == 2

    del phases[:]
    second = put_job(storage, "second", KIT, LUDO)
    assert train_job("second", storage).ok
    assert not any(reference for _, reference, _ in phases)
    assert losses_in(second).references == losses.references
    assert second.read_json(METRICS)["adapterDigest"] == metrics["adapterDigest"]


def test_the_panel_leaves_the_persons_own_adapter_as_it_would_be_without(storage: str) -> None:
    alone, beside = put_job(storage, "alone"), put_job(storage, "beside", KIT)
    assert train_job("alone", storage).ok and train_job("beside", storage).ok
    weights = [Path(folder.path, ADAPTER_GGUF).read_bytes() for folder in (alone, beside)]
    assert weights[0] == weights[1]
    assert losses_in(alone).references == {} and losses_in(alone).candidate.personas == ()


def test_a_cancel_while_the_panel_is_trained_ends_the_job(
    storage: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put_job(storage, "stopped", KIT, LUDO)
    real = references.lora.train_adapter

    def cancelled(*args: Any, **kwargs: Any) -> Any:
        folder.write_text(CANCEL, "")
        return real(*args, **kwargs)

    monkeypatch.setattr(references.lora, "train_adapter", cancelled)
    result = train_job("stopped", storage)
    assert (result.ok, result.error_code) == (False, "CANCELLED")
    assert folder.read_json(ERROR)["code"] == "CANCELLED" and not folder.exists(METRICS)
    assert not list((home / "cache" / "panel").glob("*/*"))


def test_a_cancel_while_the_adapter_is_measured_ends_the_job(
    storage: str, phases: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "PROGRESS_EVERY_S", 0.0)
    folder = put_job(storage, "measured")
    real = train._Reporter.still_measuring

    def cancelled(report: Any) -> None:
        if phases.count(("held_out", 0, 0)) == 3:
            folder.write_text(CANCEL, "")
        real(report)

    with monkeypatch.context() as patched:
        patched.setattr(train._Reporter, "still_measuring", cancelled)
        result = train_job("measured", storage)
    assert (result.ok, result.error_code) == (False, "CANCELLED") and not folder.exists(METRICS)
    # Once as it began, then with every batch: a follower that hears nothing would give the training up.
    assert phases.count(("held_out", 0, 0)) == 4
    folder.remove(CANCEL)
    assert train_job("measured", storage).ok
    resumed = folder.read_json(METRICS)["training"]
    assert (resumed["resumedFromStep"], resumed["steps"]) == (2, 2), "nothing is trained again"


def test_a_job_without_a_panel_file_is_trained_all_the_same(storage: str) -> None:
    # Its data set was prepared by a version that knew no panel.
    folder = put_job(storage, "older")
    folder.remove(PANEL)
    assert train_job("older", storage).ok
    assert losses_in(folder).references == {}
