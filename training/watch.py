"""When a run has gone wrong: loss that is no number, explodes or does not fall."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from training.errors import TrainingDiverged

EXPLODED = 2.0
"""Nat above the first steps' mean loss at which training counts as diverged: the loss of a usable base on
mail is 2–4 nat per token, uniform guessing over 49,152 tokens is 10.8."""


def stop_if_diverged(losses: Sequence[float]) -> None:
    loss = losses[-1]
    if not math.isfinite(loss):
        raise TrainingDiverged(
            f"The loss became {loss} at step {len(losses)}. Lower learning_rate and train again.",
            step=len(losses),
            loss=loss,
        )
    if len(losses) >= 8 and mean(losses[-4:]) > mean(losses[:4]) + EXPLODED:
        raise TrainingDiverged(
            f"The loss rose from {mean(losses[:4]):.2f} to {mean(losses[-4:]):.2f} nat per token by step "
            f"{len(losses)} (limit: +{EXPLODED:g}). Lower learning_rate and train again.",
            step=len(losses),
            loss=loss,
        )


def stop_if_flat(losses: Sequence[float]) -> None:
    """A run of 20 steps or more whose last quarter is no lower than its first has learnt nothing."""
    quarter = len(losses) // 4
    if len(losses) >= 20 and mean(losses[-quarter:]) >= mean(losses[:quarter]):
        raise TrainingDiverged(
            f"The loss did not fall: {mean(losses[:quarter]):.2f} nat per token at the start, "
            f"{mean(losses[-quarter:]):.2f} at the end of {len(losses)} steps. learning_rate is too low to "
            "learn or too high to settle: change it and train again.",
            step=len(losses),
            loss=losses[-1],
        )


def stop_if_validation_diverged(curve: Sequence[tuple[int, float]], losses: Sequence[float]) -> None:
    """The validation loss is measured on the same mails each time, so one look is enough to tell."""
    (_, first), (step, nll) = curve[0], curve[-1]
    if not math.isfinite(nll) or nll > first + EXPLODED:
        raise TrainingDiverged(
            f"The validation loss went from {first:.2f} to {nll:.2f} nat per token by step {step} (limit: "
            f"+{EXPLODED:g}). Lower learning_rate and train again.",
            step=step,
            loss=losses[-1] if losses else nll,
        )


def stop_if_useless(curve: Sequence[tuple[int, float]], losses: Sequence[float], min_delta: float) -> None:
    """A fresh adapter that the validation slice never found better than none has learnt nothing."""
    first, best = curve[0][1], min(nll for _, nll in curve)
    if best > first - min_delta:
        raise TrainingDiverged(
            f"The validation loss did not fall: {first:.3f} nat per token before training, at best "
            f"{best:.3f} in {len(losses)} steps (needed: {min_delta:g} less). learning_rate is too low to "
            "learn or too high to settle: change it and train again.",
            step=len(losses),
            loss=losses[-1],
        )


def stop_if_broken(weights: torch.Tensor, losses: Sequence[float]) -> None:
    """The last step's own update is seen by no later loss."""
    if not torch.isfinite(weights).all():
        raise TrainingDiverged(
            f"The weights are no longer finite after step {len(losses)}, the last one. "
            "Lower learning_rate and train again.",
            step=len(losses),
            loss=losses[-1],
        )


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
