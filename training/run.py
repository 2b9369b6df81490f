"""One adapter's way through its steps: what is due before, in and after each of them.

`training.lora.train_adapter` is the loop; here is what it goes through. Everything that must survive a crash
is in `RunState` (training.checkpoint).
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from training.checkpoint import RunState, fingerprint
from training.config import TrainConfig
from training.dataset import EncodedExample
from training.device import peak_memory_bytes
from training.early_stop import EarlyStop, validation_loss
from training.errors import TrainingCancelled
from training.flat_parameters import FlatParameters
from training.forward import reply_hidden_states
from training.loaded_base import LoadedBase
from training.lora_linear import DropoutMasks
from training.loss import reply_cross_entropy
from training.optimiser import make_optimiser
from training.plan import looks_of, plan_epochs, rate_factor, split_validation
from training.schemas import TrainingProgress, TrainingResult
from training.step_losses import StepLosses
from training.termination import uninterrupted
from training.watch import (
    mean,
    stop_if_broken,
    stop_if_diverged,
    stop_if_flat,
    stop_if_useless,
    stop_if_validation_diverged,
)
from training.weight_average import WeightAverage

if TYPE_CHECKING:
    from peft import PeftModel

GIVE_BACK_EVERY_STEPS = 8


class Run:
    """A training that is under way; made by `train_adapter` and used up by it."""

    def __init__(
        self,
        config: TrainConfig,
        examples: Sequence[EncodedExample],
        model: PeftModel,
        base: LoadedBase,
        masks: DropoutMasks,
        out_dir: Path,
        *,
        start_digest: str | None,
        should_stop: Callable[[], bool] | None,
        on_checkpoint: Callable[[], None] | None,
    ) -> None:
        """Plan every step, and go on from the checkpoint in `out_dir` when it fits.

        `start_digest` names the adapter that training goes on from; None: a fresh one.
        """
        self.config, self.model, self.base = config, model, base
        self._masks = masks
        self._continues = start_digest is not None
        self._should_stop = should_stop
        self._on_checkpoint = on_checkpoint
        self._split = split_validation(examples, config)
        self._epochs = plan_epochs(self._split.train, config)
        self._plan = [batch for epoch in self._epochs for batch in epoch]
        self.steps = min(len(self._plan), config.max_steps or len(self._plan))
        self._looks = looks_of(self._epochs, self.steps) if self._split.validation else frozenset[int]()
        self.weights = FlatParameters(model)
        # The optimiser steps on one fp32 master vector: bf16 weights alone lose updates smaller than 2^-8 of
        # themselves at these rates.
        self._optimiser = make_optimiser(self.weights.master, config)
        self.early = EarlyStop(config.patience, config.min_delta)
        self._average: WeightAverage | None = None
        if self._split.validation and config.average_from is not None:
            self._average = WeightAverage(int(config.average_from * self.steps))
        self.state = RunState(
            out_dir / "checkpoint",
            fingerprint(config, examples, base.info, start_digest),
            self.early,
            self._average,
            base.trainers,
        )
        self.first_step = self.state.resume(self.weights, self._optimiser)
        self._losses = StepLosses(self.state.losses, late=base.device.type == "cuda")
        self._tokens_before = self.state.tokens
        self._started = self._saved_at = time.monotonic()
        self._seconds = 0.0

    @property
    def is_over(self) -> bool:
        return self.state.step == self.steps or self.early.is_over

    def stop_if_asked(self) -> None:
        """Raise TrainingCancelled when somebody wants it."""
        if self._should_stop is not None and self._should_stop():
            raise TrainingCancelled(f"Training was cancelled at step {self.state.step} of {self.steps}.")

    def look(self) -> None:
        """Look at the validation slice when it is due.

        Before a step, not after it: a run that is resumed makes up for a look that it missed.
        """
        if not self.early.is_due(self.state.step, self._looks):
            return
        self._losses.catch_up()
        nll = self._validation_loss()
        with uninterrupted():
            self.early.look(self.state.step, nll, self.weights)
        stop_if_validation_diverged(self.early.curve, self.state.losses)

    def look_at_mean(self) -> None:
        """Look once more, at the mean of the weights, after the last step; what was kept so far may give way.

        A run that is resumed here looks again, and finds the same.
        """
        if self._average is None or self._average.mean is None:
            return
        with self.weights.replaced_by(self._average.mean):
            nll = self._validation_loss()
        self.early.look_at_mean(self.state.step, self._average.begin, nll, self._average.mean)

    def _validation_loss(self) -> float:
        return validation_loss(
            self.model, self.base, self._split.validation, self.config.batch_tokens, self.stop_if_asked
        )

    def step(self) -> None:
        """Do the next step. Raises TrainingDiverged."""
        batch = [self._split.train[index] for index in self._plan[self.state.step]]
        self._optimiser.param_groups[0]["lr"] = self.config.learning_rate * rate_factor(
            self.state.step, self.steps, self.config
        )
        # As rows of one length, which is at least what any layout feeds.
        self._masks.renew(len(batch) * max(len(e.input_ids) for e in batch), self.base.model.dtype)
        loss = loss_and_gradient(self.model, self.base, batch)
        with uninterrupted():
            self.weights.update(self._optimiser, self.config.max_grad_norm)
            self._losses.add(loss)
            self.state.step_done(sum(len(example.input_ids) for example in batch))
            if self._average is not None:
                self._average.add(self.state.step, self.weights.master)
        stop_if_diverged(self.state.losses)
        if self.state.step % GIVE_BACK_EVERY_STEPS == 0:
            _give_back_memory()

    def save_if_due(self) -> None:
        """Write a checkpoint when the seconds or the steps that a crash may lose are over."""
        every = self.config.checkpoint_every_steps or self.steps
        if self.state.step < self.steps and (
            time.monotonic() - self._saved_at >= self.config.checkpoint_every_s
            or (self.state.step - self.first_step) % every == 0
        ):
            self.save_checkpoint()
            self._saved_at = time.monotonic()

    def save_checkpoint(self) -> None:
        self._losses.catch_up()
        self.state.save(time.monotonic() - self._started, self.weights, self._optimiser)
        if self._on_checkpoint is not None:
            self._on_checkpoint()

    def progress(self) -> TrainingProgress:
        """Return where the run is; the time left is that of all planned steps at this session's pace."""
        rate = (self.state.tokens - self._tokens_before) / (time.monotonic() - self._started)
        left = sum(
            len(self._split.train[index].input_ids)
            for batch in self._plan[self.state.step : self.steps]
            for index in batch
        )
        return TrainingProgress(
            step=self.state.step,
            steps=self.steps,
            epoch=self.state.step / max(1, len(self._epochs[0])),
            loss=self.state.losses[-1],
            tokens=self.state.tokens,
            tokens_per_second=rate,
            eta_seconds=left / rate,
        )

    def finish(self) -> None:
        """Judge the run as a whole, keep its last state and make the best weights the adapter's.

        Raises TrainingDiverged when it learnt nothing.
        """
        self._losses.catch_up()
        if self.state.losses:
            stop_if_diverged(self.state.losses)
        self._seconds = self.state.seconds + time.monotonic() - self._started
        if not self._continues and self.early.curve:
            # A run that max_steps cuts short (a smoke test) has not had its chance.
            if self.state.step < self.steps or self.steps == len(self._plan):
                stop_if_useless(self.early.curve, self.state.losses, self.config.min_delta)
        elif not self._continues:
            # An adapter that knows the voice starts near its floor: flat is no failure, and the gate judges.
            stop_if_flat(self.state.losses)
        stop_if_broken(self.weights.master, self.state.losses)
        if self.first_step == self.state.step:
            # Killed between the last step and the end: nothing to train, everything to save.
            self._seconds = max(self.state.seconds, 1e-9)
        else:
            self.state.save(time.monotonic() - self._started, self.weights, self._optimiser)
        self.early.put_best(self.weights)

    def result(self, adapter_dir: Path) -> TrainingResult:
        """Return what became of a finished run."""
        losses, done = self.state.losses, self.state.step
        return TrainingResult(
            adapter_dir=str(adapter_dir),
            steps=done,
            epochs=done / max(1, len(self._epochs[0])),
            train_tokens=self.state.tokens,
            train_seconds=self._seconds,
            train_tokens_per_second=self.state.tokens / self._seconds,
            final_train_loss=mean(losses[-max(1, done // 10) :]),
            loss_curve=tuple(enumerate(losses, start=1)),
            trainable_parameters=self.weights.master.numel(),
            peak_memory_bytes=peak_memory_bytes(self.base.device),
            device=self.base.device_name,
            resumed_from_step=self.first_step,
            earlier_seconds=self.state.device_seconds,
            best_step=self.early.best_step if self.early.curve else done,
            averaged_from=self.early.averaged_from,
            stopped_early=done < self.steps,
            stop_reason=self.early.describe(done, len(self._plan), self._split.reason),
            validation_emails=len(self._split.validation),
            validation_curve=tuple(self.early.curve),
        )


def loss_and_gradient(model: PeftModel, base: LoadedBase, batch: Sequence[EncodedExample]) -> torch.Tensor:
    """Run one batch forward and backward; returns its mean loss per reply token in nat, on the device.

    Nothing in here may wait for a GPU (tests/gpu/test_cuda.py): no `float()`, `.item()` or plain `.to()`.
    """
    hidden, targets, _ = reply_hidden_states(model, base, batch, with_masked=False)
    output = base.model.get_output_embeddings()
    loss = reply_cross_entropy(hidden, output.weight, targets) / max(1, len(targets))  # type: ignore[union-attr, arg-type]
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _give_back_memory() -> None:
    """Return freed memory to the system where the C library keeps it (glibc's `malloc_trim`).

    Batches of changing shape leave holes: without this the process grew from 2.3 GB in the first epoch to
    2.8 GB in the third on the same mails, live memory unchanged.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
