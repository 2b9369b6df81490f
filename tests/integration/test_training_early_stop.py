"""Early stop: training ends when mail that it does not see no longer gains, and the best weights are kept.

The tiny base cannot overfit in earnest. Where a test needs a best point that is not the last, the validation
loss is replaced by another function of the weights, lowest at the size that they have after a known step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bases import tiny_base, tiny_examples
from training import run
from training.config import LoraConfig, TrainConfig
from training.early_stop import EarlyStop
from training.errors import TrainingCancelled, TrainingDiverged
from training.evaluate import held_out_losses, losses_of_saved_adapter
from training.export import sha256_of
from training.loaded_base import LoadedBase
from training.lora import train_adapter
from training.plan import split_validation
from training.schemas import TrainingProgress, TrainingResult
from training.skill import mean_loss

STOPS = TrainConfig(
    precision="fp32",
    epochs=6,
    batch_tokens=64,
    learning_rate=5e-3,
    validation_fraction=0.25,
    min_validation=3,
    average_from=None,
    checkpoint_every_s=1e-9,  # after every step
    lora=LoraConfig(rank=4, alpha=8, dropout=0.2),
)
MAILS = tiny_examples(24)
SPLIT = split_validation(MAILS, STOPS)
EPOCH_STEPS = 8
BEST_STEP, LAST_STEP = 2 * EPOCH_STEPS, 3 * EPOCH_STEPS


class PowerCut(Exception):
    pass


@pytest.fixture
def base() -> LoadedBase:
    return tiny_base()


def size_of(model: Any) -> float:
    """Return the norm of all B factors: 0 in a fresh adapter, and growing."""
    return sum(float(p.detach().square().sum()) for n, p in model.named_parameters() if "lora_B" in n) ** 0.5


@pytest.fixture
def best_after_two_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the weights after two epochs the best; those after the third are worse, so that it stops there."""
    sizes: list[float] = []

    def falling(model: Any, *_: Any) -> float:
        sizes.append(size_of(model))
        return 9.0 - len(sizes)

    with monkeypatch.context() as patch:
        patch.setattr(run, "validation_loss", falling)
        train_adapter(STOPS, MAILS, tiny_base(), tmp_path / "sizes")
    assert sizes == sorted(sizes)
    monkeypatch.setattr(run, "validation_loss", lambda model, *_: 3 + abs(size_of(model) - sizes[2]))


def digest(result: TrainingResult) -> str:
    return sha256_of(Path(result.adapter_dir) / "adapter_model.safetensors")


def cut_at(step: int) -> Callable[[TrainingProgress], None]:
    def on_progress(progress: TrainingProgress) -> None:
        if progress.step == step:
            raise PowerCut

    return on_progress


def cut_after_training(_: Any) -> None:
    raise PowerCut


@pytest.mark.usefixtures("best_after_two_epochs")
def test_training_ends_early_and_saves_the_weights_that_were_best(base: LoadedBase, tmp_path: Path) -> None:
    steady = {"schedule": "constant", "warmup_fraction": 0.0}  # the rate does not depend on the run's length
    config = STOPS.model_copy(update=steady)
    result = train_adapter(config, MAILS, base, tmp_path)
    curve = dict(result.validation_curve)
    assert result.stopped_early and result.steps == max(curve) == len(result.loss_curve) < 6 * EPOCH_STEPS
    assert 0 < result.best_step == min(curve, key=lambda step: curve[step]) < result.steps
    assert f"at step {result.steps} of {6 * EPOCH_STEPS}" in result.stop_reason
    assert f"lowest at step {result.best_step} ({curve[result.best_step]:.3f} nat" in result.stop_reason
    blind = config.model_copy(update={"max_steps": result.best_step, "validation_fraction": 0})
    until_best = train_adapter(blind, SPLIT.train, base, tmp_path / "until best")
    assert digest(result) == digest(until_best)


def test_the_curve_is_the_loss_of_the_slice_and_the_saved_adapter_has_its_lowest(
    base: LoadedBase, tmp_path: Path
) -> None:
    measured: list[float] = []
    result = train_adapter(
        STOPS,
        MAILS,
        base,
        tmp_path,
        after_training=lambda model: measured.append(
            mean_loss(held_out_losses(model, base, SPLIT.validation, 64))
        ),
    )
    lowest = min(nll for _, nll in result.validation_curve)
    saved = losses_of_saved_adapter(Path(result.adapter_dir), base, SPLIT.validation, 64)
    assert measured[0] == mean_loss(saved) == pytest.approx(lowest, abs=1e-6)
    assert lowest < result.validation_curve[0][1] - 0.1
    assert result.validation_emails == len(SPLIT.validation) == 6


@pytest.mark.usefixtures("best_after_two_epochs")
def test_more_patience_looks_further(base: LoadedBase, tmp_path: Path) -> None:
    impatient = train_adapter(STOPS, MAILS, base, tmp_path / "impatient")
    patient = train_adapter(STOPS.model_copy(update={"patience": 2}), MAILS, base, tmp_path)
    assert patient.steps > impatient.steps
    assert patient.loss_curve[: impatient.steps] == impatient.loss_curve
    assert digest(patient) == digest(impatient)


def test_the_validation_slice_is_never_trained_on(base: LoadedBase, tmp_path: Path) -> None:
    result = train_adapter(STOPS.model_copy(update={"epochs": 1}), MAILS, base, tmp_path)
    assert result.train_tokens == sum(len(e.input_ids) for e in SPLIT.train)


def test_looking_does_not_change_what_is_trained(base: LoadedBase, tmp_path: Path) -> None:
    one_epoch = STOPS.model_copy(update={"epochs": 1})
    train = SPLIT.train
    looked = train_adapter(one_epoch, MAILS, base, tmp_path / "looked")
    blind_config = one_epoch.model_copy(update={"validation_fraction": 0})
    blind = train_adapter(blind_config, train, base, tmp_path / "blind")
    assert (looked.best_step, looked.loss_curve) == (looked.steps, blind.loss_curve)
    assert digest(looked) == digest(blind)
    assert blind.validation_curve == () and blind.stop_reason.endswith("validation_fraction is 0.")


def test_too_few_mails_train_without_a_slice_and_the_result_says_so(base: LoadedBase, tmp_path: Path) -> None:
    result = train_adapter(STOPS, MAILS[:11], base, tmp_path)
    assert (result.stopped_early, result.validation_emails, result.best_step) == (False, 0, result.steps)
    assert "11 examples allow at most 2 validation mails" in result.stop_reason


@pytest.mark.usefixtures("best_after_two_epochs")
@pytest.mark.parametrize(
    "cut", [3, EPOCH_STEPS, BEST_STEP, BEST_STEP + 1, LAST_STEP], ids=lambda cut: f"step {cut}"
)
def test_a_run_that_was_cut_off_ends_with_the_adapter_of_an_uninterrupted_one(
    tmp_path: Path, cut: int
) -> None:
    """In the first epoch, at looks, right after the best step, and at the last step before it stops."""
    whole = train_adapter(STOPS, MAILS, tiny_base(), tmp_path / "whole")
    assert (whole.best_step, whole.steps, whole.stopped_early) == (BEST_STEP, LAST_STEP, True)
    with pytest.raises(PowerCut):
        train_adapter(STOPS, MAILS, tiny_base(), tmp_path / "cut", on_progress=cut_at(cut))
    torch.rand(123)
    resumed = train_adapter(STOPS, MAILS, tiny_base(), tmp_path / "cut")
    assert resumed.resumed_from_step == cut
    assert (resumed.best_step, resumed.steps) == (whole.best_step, whole.steps)
    assert resumed.validation_curve == whole.validation_curve
    assert digest(resumed) == digest(whole)
    assert resumed.stop_reason == whole.stop_reason


def test_a_bf16_run_that_was_cut_off_looks_at_the_same_losses(tmp_path: Path) -> None:
    config = STOPS.model_copy(update={"precision": "bf16"})
    whole = train_adapter(config, MAILS, tiny_base(precision="bf16"), tmp_path / "whole")
    with pytest.raises(PowerCut):
        train_adapter(config, MAILS, tiny_base(precision="bf16"), tmp_path, on_progress=cut_at(EPOCH_STEPS))
    resumed = train_adapter(config, MAILS, tiny_base(precision="bf16"), tmp_path)
    assert resumed.resumed_from_step == EPOCH_STEPS
    assert (resumed.validation_curve, digest(resumed)) == (whole.validation_curve, digest(whole))


@pytest.mark.usefixtures("best_after_two_epochs")
def test_a_run_that_died_after_its_early_stop_only_saves_again(base: LoadedBase, tmp_path: Path) -> None:
    with pytest.raises(PowerCut):
        train_adapter(STOPS, MAILS, base, tmp_path, after_training=cut_after_training)
    seen: list[TrainingProgress] = []
    again = train_adapter(STOPS, MAILS, base, tmp_path, on_progress=seen.append)
    whole = train_adapter(STOPS, MAILS, base, tmp_path / "whole")
    assert seen == [] and again.resumed_from_step == again.steps == whole.steps
    assert (digest(again), again.stop_reason) == (digest(whole), whole.stop_reason)


def test_a_cancel_is_seen_while_the_slice_is_looked_at(base: LoadedBase, tmp_path: Path) -> None:
    steps: list[int] = []
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 2  # the look before the first step asks once a batch

    with pytest.raises(TrainingCancelled, match="at step 0 of"):
        train_adapter(
            STOPS,
            MAILS,
            base,
            tmp_path,
            should_stop=should_stop,
            on_progress=lambda progress: steps.append(progress.step),
        )
    assert steps == []


def test_an_adapter_that_never_helps_unseen_mail_is_refused_with_the_numbers(
    base: LoadedBase, tmp_path: Path
) -> None:
    still = STOPS.model_copy(update={"learning_rate": 1e-12})
    with pytest.raises(
        TrainingDiverged, match=r"validation loss did not fall: 5\.\d{3} nat .* at best 5\.\d{3} in"
    ):
        train_adapter(still, MAILS, base, tmp_path)
    assert not (tmp_path / "adapter").exists()


def test_a_smoke_run_of_a_few_steps_is_not_judged_by_the_slice(base: LoadedBase, tmp_path: Path) -> None:
    smoke = STOPS.model_copy(update={"learning_rate": 1e-12, "max_steps": 2})
    assert train_adapter(smoke, MAILS, base, tmp_path).steps == 2


def test_weights_that_break_are_seen_by_the_slice(base: LoadedBase, tmp_path: Path) -> None:
    def poison(progress: TrainingProgress) -> None:
        if progress.step == 8:  # the last step of the first epoch: the next thing that happens is a look
            with torch.no_grad():
                base.model.get_input_embeddings().weight[:] = float("nan")  # type: ignore[operator, union-attr, index]

    with pytest.raises(TrainingDiverged, match=r"validation loss went from 5\.\d\d to nan .* by step 8"):
        train_adapter(STOPS, MAILS, base, tmp_path, on_progress=poison)


def test_going_on_from_an_adapter_that_cannot_gain_keeps_it(
    base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Path(train_adapter(STOPS, MAILS, base, tmp_path / "start").adapter_dir)
    monkeypatch.setattr(run, "validation_loss", lambda model, *_: size_of(model))
    result = train_adapter(STOPS, MAILS, base, tmp_path / "on", start_from=start)
    assert (result.best_step, result.stopped_early) == (0, True)
    assert "lowest at the start" in result.stop_reason
    assert digest(result) == sha256_of(start / "adapter_model.safetensors")


# ---- the mean of the weights -----------------------------------------------------------------------

AVERAGES = STOPS.model_copy(update={"average_from": 0.25, "epochs": 3, "patience": 9})
STEPS = 3 * EPOCH_STEPS
FIRST_IN_MEAN = STEPS // 4 + 1


@pytest.fixture
def mean_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every look better than the one before it: the mean is looked at last, so it is the best."""
    looks: list[float] = []

    def falling(model: Any, *_: Any) -> float:
        looks.append(9.0 - len(looks))
        return looks[-1]

    monkeypatch.setattr(run, "validation_loss", falling)


def masters_of(config: TrainConfig, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Train, and return the master weights after every step."""
    seen: list[torch.Tensor] = []
    step = run.Run.step

    def noted(self: run.Run) -> None:
        step(self)
        seen.append(self.weights.master.detach().clone())

    with monkeypatch.context() as patch:
        patch.setattr(run.Run, "step", noted)
        train_adapter(config, MAILS, tiny_base(), out)
    return seen


def saved_weights(result: TrainingResult) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(result.adapter_dir) / "adapter_model.safetensors")


@pytest.mark.usefixtures("mean_is_best")
def test_the_mean_of_the_last_three_quarters_of_the_steps_is_saved_when_the_slice_finds_it_best(
    base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = train_adapter(AVERAGES, MAILS, base, tmp_path / "mean")
    masters = masters_of(AVERAGES, tmp_path / "noted", monkeypatch)
    assert len(masters) == STEPS
    mean = torch.stack(masters[FIRST_IN_MEAN - 1 :]).mean(0)
    saved = torch.cat([weights.flatten() for weights in saved_weights(result).values()])
    assert torch.allclose(saved.sort().values, mean.sort().values, atol=1e-6)
    assert (result.best_step, result.averaged_from) == (STEPS, FIRST_IN_MEAN - 1)
    assert f"lowest for the mean of the weights of steps {FIRST_IN_MEAN} to {STEPS} (" in result.stop_reason
    assert [step for step, _ in result.validation_curve] == [0, 8, 16, 24], "the mean is no step"


def test_a_mean_that_is_worse_than_a_step_changes_nothing(
    base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def worse_at_last(model: Any, *_: Any) -> float:
        looks.append(9.0 - len(looks) if len(looks) < 4 else 8.0)
        return looks[-1]

    monkeypatch.setattr(run, "validation_loss", worse_at_last)
    with_mean = train_adapter(AVERAGES, MAILS, base, tmp_path / "with")
    looks.clear()
    without = AVERAGES.model_copy(update={"average_from": None})
    plain = train_adapter(without, MAILS, base, tmp_path / "without")
    assert (with_mean.averaged_from, with_mean.best_step) == (None, STEPS)
    assert digest(with_mean) == digest(plain)


@pytest.mark.parametrize("cut", [3, FIRST_IN_MEAN, 2 * EPOCH_STEPS, STEPS], ids=lambda cut: f"step {cut}")
def test_a_run_that_was_cut_off_ends_with_the_same_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    real = EarlyStop.look_at_mean
    # Which weights are saved tells two means apart, so the mean must be what is saved.
    monkeypatch.setattr(
        EarlyStop,
        "look_at_mean",
        lambda self, step, begin, nll, mean: real(self, step, begin, nll - 5, mean),
    )
    whole = train_adapter(AVERAGES, MAILS, tiny_base(), tmp_path / "whole")
    with pytest.raises(PowerCut):
        train_adapter(AVERAGES, MAILS, tiny_base(), tmp_path / "cut", on_progress=cut_at(cut))
    resumed = train_adapter(AVERAGES, MAILS, tiny_base(), tmp_path / "cut")
    assert resumed.resumed_from_step == min(cut, STEPS - 1)  # the last step is saved with the adapter
    assert whole.averaged_from == resumed.averaged_from is not None
    assert (digest(resumed), resumed.stop_reason) == (digest(whole), whole.stop_reason)


@pytest.mark.usefixtures("mean_is_best")
def test_a_run_that_died_after_its_mean_was_kept_saves_it_again(base: LoadedBase, tmp_path: Path) -> None:
    with pytest.raises(PowerCut):
        train_adapter(AVERAGES, MAILS, base, tmp_path, after_training=cut_after_training)
    again = train_adapter(AVERAGES, MAILS, base, tmp_path)
    assert (again.resumed_from_step, again.averaged_from) == (STEPS, FIRST_IN_MEAN - 1)
    assert f"mean of the weights of steps {FIRST_IN_MEAN} to {STEPS}" in again.stop_reason


def test_without_a_slice_the_last_step_is_saved(base: LoadedBase, tmp_path: Path) -> None:
    blind = AVERAGES.model_copy(update={"validation_fraction": 0})
    result = train_adapter(blind, MAILS, base, tmp_path / "blind")
    plain = train_adapter(blind.model_copy(update={"average_from": None}), MAILS, base, tmp_path)
    assert result.averaged_from is None and digest(result) == digest(plain)
