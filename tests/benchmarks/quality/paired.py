"""Is one adapter better than another on the same mails? The difference and its paired bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 10_000
Loss = Sequence[float]
"""[nll, tokens] of one mail, as the ledger keeps it."""


class Difference(NamedTuple):
    """Mean loss of the first minus that of the second, nat per token; negative: the first is better."""

    mean: float
    low: float
    high: float
    """The 95 % interval."""

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def mean_nll(losses: Sequence[Loss]) -> float:
    """Return the mean over all tokens, nat per token (as training.skill.mean_loss); NaN without tokens."""
    tokens = sum(count for _, count in losses)
    return sum(nll * count for nll, count in losses) / tokens if tokens else float("nan")


def compare(first: Sequence[Loss], second: Sequence[Loss], seed: int = 17) -> Difference:
    """Compare two models on the same mails: whole mails are drawn with replacement, both losses together.

    Percentile interval (Efron 1979). Raises ValueError when the mails are not the same.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape or not len(a) or not np.array_equal(a[:, 1], b[:, 1]):
        raise ValueError(f"{len(a)} and {len(b)} losses are not of the same mails; measure both again")
    tokens = a[:, 1]
    drawn = np.random.default_rng(seed).integers(0, len(a), size=(DRAWS, len(a)))
    differences = ((a[:, 0] - b[:, 0]) * tokens)[drawn].sum(axis=1) / tokens[drawn].sum(axis=1)
    low, high = np.quantile(differences, [0.025, 0.975])
    return Difference(mean_nll(first) - mean_nll(second), float(low), float(high))
