"""A training whose process is told to end saves and goes on later as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from tests.bases import tiny_base
from tests.integration.train_until_told import CONFIG, MAILS
from training.checkpoint import CHECKPOINT_FILE
from training.export import sha256_of
from training.flat_parameters import FlatParameters
from training.lora import train_adapter
from training.schemas import TrainingProgress, TrainingResult
from training.settings import PROJECT_ROOT
from training.termination import EXIT_CODE, uninterrupted


class ToldToEnd(BaseException):
    """As Prefect's TerminationSignal: no Exception, so that nothing takes it for an error."""


def digest(result: TrainingResult) -> str:
    return sha256_of(Path(result.adapter_dir) / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """The run that nobody disturbed."""
    return train_adapter(CONFIG, MAILS, tiny_base(), tmp_path_factory.mktemp("whole"))


def go_on(folder: Path) -> TrainingResult:
    torch.rand(77)
    return train_adapter(CONFIG, MAILS, tiny_base(), folder)


def end_process_after_step(
    step: int, number: int, folder: Path, way: str, every_steps: int = 0
) -> tuple[int, int]:
    """Send a signal once `step` is done; returns the exit code and the last step that was announced."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.train_until_told", str(folder), way, str(every_steps)],
        cwd=PROJECT_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    last = 0
    for line in child.stdout:
        assert line.startswith("step"), line
        last = int(line.split()[1])
        if last == step:
            child.send_signal(number)
    return child.wait(timeout=60), last


@pytest.mark.parametrize(("way", "exit_code"), [("plain", EXIT_CODE), ("prefect", -signal.SIGTERM)])
def test_sigterm_saves_exits_at_once_and_the_next_run_ends_with_the_same_adapter(
    tmp_path: Path, way: str, exit_code: int, whole: TrainingResult
) -> None:
    code, last = end_process_after_step(5, signal.SIGTERM, tmp_path, way)
    assert code == exit_code
    assert last <= 6
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == [CHECKPOINT_FILE]
    resumed = go_on(tmp_path)
    assert resumed.resumed_from_step in (last, last + 1)  # announced after it is counted
    assert digest(resumed) == digest(whole)
    assert (resumed.loss_curve, resumed.validation_curve) == (whole.loss_curve, whole.validation_curve)


@pytest.mark.parametrize(
    ("way", "number"), [("plain", signal.SIGKILL), ("thread", signal.SIGTERM)], ids=["kill -9", "thread"]
)
def test_what_cannot_be_answered_loses_at_most_one_interval(
    tmp_path: Path, way: str, number: int, whole: TrainingResult
) -> None:
    _, last = end_process_after_step(8, number, tmp_path, way, every_steps=3)
    resumed = go_on(tmp_path)
    assert last - 3 < resumed.resumed_from_step <= last
    assert resumed.resumed_from_step % 3 == 0
    assert digest(resumed) == digest(whole)


@pytest.mark.parametrize("batch", [1, 4, 11], ids=lambda batch: f"batch {batch}")
@pytest.mark.parametrize("layer", [0, 1])
def test_a_step_that_is_torn_apart_is_done_again_with_the_same_dropout(
    tmp_path: Path, batch: int, layer: int, whole: TrainingResult
) -> None:
    """Between two layers of the forward pass: some dropout is drawn by then, no weight is changed yet.
    Batches of the validation slice count too, and a look that is cut off is taken again."""
    base, seen = tiny_base(), 0

    def end(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == batch:
            raise ToldToEnd

    hook = base.model.model.layers[layer].register_forward_hook(end)
    with pytest.raises(ToldToEnd):
        train_adapter(CONFIG, MAILS, base, tmp_path)
    hook.remove()
    assert digest(go_on(tmp_path)) == digest(whole)


def test_sigterm_in_the_middle_of_an_update_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: TrainingResult
) -> None:
    def raise_it(*_: Any) -> NoReturn:
        raise ToldToEnd

    before = signal.signal(signal.SIGTERM, raise_it)
    copy, calls = FlatParameters.copy_to_working, 0

    def copy_to_working(self: FlatParameters) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:  # the master has moved, the working copy has not
            os.kill(os.getpid(), signal.SIGTERM)
        copy(self)

    try:
        with monkeypatch.context() as patch, pytest.raises(ToldToEnd):
            patch.setattr(FlatParameters, "copy_to_working", copy_to_working)
            train_adapter(CONFIG, MAILS, tiny_base(), tmp_path)
        assert signal.getsignal(signal.SIGTERM) is raise_it
    finally:
        signal.signal(signal.SIGTERM, before)
    resumed = go_on(tmp_path)
    assert resumed.resumed_from_step > 0
    assert digest(resumed) == digest(whole)


def test_prefects_own_handler_stays_installed_while_training(tmp_path: Path) -> None:
    """It answers a cancel in the UI only while it is there (prefect.utilities.engine)."""
    from prefect.utilities.engine import can_ack_control_intent, capture_sigterm

    seen: list[bool] = []
    with capture_sigterm():
        train_adapter(
            CONFIG.model_copy(update={"max_steps": 2}),
            MAILS,
            tiny_base(),
            tmp_path,
            on_progress=lambda _: seen.append(can_ack_control_intent()),
        )
    assert seen == [True, True]


def test_a_checkpoint_is_also_pushed_when_told_to_end_and_a_failing_push_changes_nothing(
    tmp_path: Path,
) -> None:
    pushed: list[int] = []

    def end(progress: TrainingProgress) -> None:
        if progress.step == 3:
            raise ToldToEnd

    def push() -> None:
        pushed.append((tmp_path / "checkpoint" / CHECKPOINT_FILE).stat().st_size)
        raise OSError("the network is gone")

    with pytest.raises(ToldToEnd):
        train_adapter(CONFIG, MAILS, tiny_base(), tmp_path, on_progress=end, on_checkpoint=push)
    assert len(pushed) == 1 and pushed[0] > 0


def test_nothing_is_saved_for_a_job_that_failed_or_was_cancelled(tmp_path: Path) -> None:
    def fail(_: TrainingProgress) -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        train_adapter(CONFIG, MAILS, tiny_base(), tmp_path, on_progress=fail)
    assert not (tmp_path / "checkpoint").exists()


def test_a_second_thread_trains_without_touching_signals(tmp_path: Path, whole: TrainingResult) -> None:
    results: list[TrainingResult] = []
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(
        target=lambda: results.append(train_adapter(CONFIG, MAILS, tiny_base(), tmp_path))
    )
    thread.start()
    thread.join()
    assert digest(results[0]) == digest(whole)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_checkpoint_is_resumed_by_another_number_of_threads(tmp_path: Path, whole: TrainingResult) -> None:
    """From a trainer with one thread, say, to a process that has all of them: equal up to rounding."""

    def end(progress: TrainingProgress) -> None:
        if progress.step == 5:
            raise ToldToEnd

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with pytest.raises(ToldToEnd):
            train_adapter(CONFIG, MAILS, tiny_base(), tmp_path, on_progress=end)
        torch.set_num_threads(2)
        resumed = go_on(tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert resumed.resumed_from_step == 5
    losses, expected = ([loss for _, loss in run.loss_curve] for run in (resumed, whole))
    assert losses == pytest.approx(expected, abs=1e-3)


def test_seconds_on_a_shared_device_are_charged_once_however_training_goes_on(tmp_path: Path) -> None:
    def end(progress: TrainingProgress) -> None:
        if progress.step == 3:
            raise ToldToEnd

    with pytest.raises(ToldToEnd):
        train_adapter(CONFIG, MAILS, replace(tiny_base(), trainers=2), tmp_path, on_progress=end)
    saved = torch.load(tmp_path / "checkpoint" / CHECKPOINT_FILE, weights_only=True)
    resumed = go_on(tmp_path)
    assert resumed.earlier_seconds == pytest.approx(saved["seconds"] / 2)
    assert resumed.train_seconds > saved["seconds"]
