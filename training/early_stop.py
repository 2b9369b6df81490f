"""When to stop, judged by mail that is not trained on; the best weights so far are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from training.dataset import EncodedExample
from training.evaluate import held_out_losses
from training.flat_parameters import FlatParameters
from training.loaded_base import LoadedBase
from training.plan import plan_epoch
from training.schemas import MailLoss
from training.skill import mean_loss

if TYPE_CHECKING:
    from peft import PeftModel


class EarlyStop:
    """The validation losses of a run and the weights that had the lowest one.

    The weights are kept as the float32 master vector, on the training device: 19.5 MB for a rank-16 adapter
    of SmolLM2-135M.
    """

    def __init__(self, patience: int, min_delta: float) -> None:
        self.patience = patience
        self.min_delta = min_delta
        self.curve: list[tuple[int, float]] = []
        self.best_step = 0
        self.best_nll = math.inf
        self.averaged_from: int | None = None
        """The best weights are the mean of the steps after this one; None: those of `best_step`."""
        self._best: torch.Tensor | None = None
        self._idle = 0

    def is_due(self, step: int, looks: frozenset[int]) -> bool:
        """Tell whether the slice is to be looked at after `step` steps; a resumed run may have done it."""
        return step in looks and (not self.curve or self.curve[-1][0] < step)

    @torch.no_grad()
    def look(self, step: int, nll: float, weights: FlatParameters) -> None:
        """Note the validation loss after `step` steps and keep the weights when it is the lowest."""
        self.curve.append((step, nll))
        self._idle = 0 if nll < self.best_nll - self.min_delta else self._idle + 1
        if nll < self.best_nll:
            self.best_step, self.best_nll = step, nll
            self._best = weights.master.detach().clone()

    @torch.no_grad()
    def look_at_mean(self, step: int, begin: int, nll: float, mean: torch.Tensor) -> None:
        """Keep the mean of the weights after the steps `begin` + 1 to `step` when its loss is the lowest."""
        if nll < self.best_nll:
            self.best_step, self.best_nll, self.averaged_from = step, nll, begin
            self._best = mean.clone()

    @property
    def is_over(self) -> bool:
        return self._idle >= self.patience

    @torch.no_grad()
    def put_best(self, weights: FlatParameters) -> None:
        """Make the best weights the adapter's; without any look it keeps its last ones."""
        if self._best is not None:
            weights.master.copy_(self._best)
            weights.copy_to_working()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold to go on from here."""
        return {
            "curve": self.curve,
            "best_step": self.best_step,
            "best_nll": self.best_nll,
            "averaged_from": self.averaged_from,
            "best": self._best,
            "idle": self._idle,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.curve = [(int(step), float(nll)) for step, nll in state["curve"]]
        self.best_step, self.best_nll = state["best_step"], state["best_nll"]
        self.averaged_from = state["averaged_from"]
        self._best, self._idle = state["best"], state["idle"]

    def describe(self, steps: int, planned: int, reason: str) -> str:
        """Say in one sentence why training ended after `steps` steps and which weights were kept.

        `reason` is why there was no validation slice.
        """
        whole = (
            f"All {steps} steps were done" if steps == planned else f"{steps} of {planned} steps were done"
        )
        if not self.curve:
            return f"{whole} without an early stop: {reason}."
        kept = f"at step {self.best_step}" if self.best_step else "at the start"
        if self.averaged_from is not None:
            kept = f"for the mean of the weights of steps {self.averaged_from + 1} to {self.best_step}"
        lowest = f"lowest {kept} ({self.best_nll:.3f} nat per token), and those weights are kept"
        if self.is_over and steps < planned:
            return (
                f"Stopped early at step {steps} of {planned}: the validation loss no longer fell by "
                f"{self.min_delta:g} nat; it was {lowest}."
            )
        return f"{whole}; the validation loss was {lowest}."


def validation_loss(
    model: PeftModel,
    base: LoadedBase,
    examples: Sequence[EncodedExample],
    batch_tokens: int,
    before_each_batch: Callable[[], None],
) -> float:
    """Return the mean loss per reply token of `examples`, nat. `before_each_batch` may raise to end it."""
    losses: list[MailLoss] = []
    for batch in plan_epoch(examples, batch_tokens, seed=0):
        before_each_batch()
        losses += held_out_losses(model, base, [examples[index] for index in batch], batch_tokens)
    return mean_loss(losses)
