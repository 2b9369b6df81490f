"""Skill on held-out mail, from losses per mail alone: better than whom, by how much, and how surely.

Metrics 1 and 2 of the gate. Every comparison is paired (the same mails under two models), and its interval
comes from a bootstrap over threads: mails of one conversation share their subject and their words, so drawing
single mails would count one piece of evidence several times. (references/voice.md §3)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from training.schemas import MailLoss, Schema

DRAWS = 2_000
"""Bootstrap draws: the 5 % quantile of 2,000 draws is itself known to about half a percentage point."""
SEED = 17
_Z = 2.49
"""1.645 + 0.84: one-sided 5 % error and 80 % power of a normal test (references/voice.md §3, metric 1)."""


class Skill(Schema):
    """How much lower one model's loss is than another's on the same mails; positive is better."""

    mean: float
    """Mean over mails of nll_other(e) - nll_model(e), nat per reply token."""
    lower: float
    """One-sided lower bound (bootstrap over threads)."""
    upper: float
    """One-sided upper bound, at the same confidence."""
    spread: float
    """Standard deviation of the difference between mails, nat per token."""
    mails: int
    threads: int

    def needed_mails(self, difference: float) -> int:
        """Return how many mails would show `difference` nat per token: n >= (2.49 σ_d / δ)²."""
        return math.ceil((_Z * self.spread / difference) ** 2)


class Specificity(Schema):
    """Is it this person's voice, or anybody's mail? The candidate against adapters of other people."""

    margin: float
    """S: mean over held-out mails of (lowest loss of base and references) - (loss of the candidate)."""
    lower: float
    """One-sided lower bound of S (bootstrap over threads)."""
    best_share: float
    """R: share of the held-out mails on which the candidate has the lowest loss of all."""
    chance: float
    """What R would be if all models were alike: 1 / (references + base + candidate)."""
    own_minus_reference: float
    """Skill over the base on the person's own mail minus the skill on the references' mail, nat per token."""
    references: int
    mails: int


def paired_skill(
    other: Sequence[MailLoss],
    model: Sequence[MailLoss],
    *,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = SEED,
) -> Skill | None:
    """Return how much better `model` predicts the mails than `other` does; None without a common mail.

    Losses are matched by `example_id`. Mails without reply tokens, and those whose loss is no number under
    either model, are left out: `mails` says how many counted.
    """
    differences, threads = _differences(other, model)
    if len(differences) == 0:
        return None
    lower, upper = thread_bootstrap(differences, threads, confidence=confidence, draws=draws, seed=seed)
    return Skill(
        mean=float(differences.mean()),
        lower=lower,
        upper=upper,
        spread=float(differences.std(ddof=1)) if len(differences) > 1 else 0.0,
        mails=len(differences),
        threads=len(set(threads)),
    )


def measure_specificity(
    candidate: Sequence[MailLoss],
    base: Sequence[MailLoss],
    references: Mapping[str, Sequence[MailLoss]],
    *,
    base_on_reference_mail: Sequence[MailLoss],
    candidate_on_reference_mail: Sequence[MailLoss],
    confidence: float = 0.90,
    draws: int = DRAWS,
    seed: int = SEED,
) -> Specificity | None:
    """Compare the candidate with the adapters of the reference panel on the person's held-out mail.

    `references` maps a persona to its adapter's losses on the person's held-out mails (the same ones);
    `…_on_reference_mail` are losses on the personas' own held-out mails. When the person is on the panel,
    leave that persona out. None when nothing can be compared.
    """
    found = {loss.example_id: loss for loss in candidate if _measurable(loss)}
    others = [{loss.example_id: loss.nll for loss in arm if _measurable(loss)} for arm in references.values()]
    arms = [{loss.example_id: loss.nll for loss in base if _measurable(loss)}, *others]
    common = [id for id in found if all(id in arm for arm in arms)]
    elsewhere = paired_skill(base_on_reference_mail, candidate_on_reference_mail, draws=1, seed=seed)
    own = paired_skill(base, candidate, draws=1, seed=seed)
    if not common or not others or elsewhere is None or own is None:
        return None
    margins = np.array([min(arm[id] for arm in arms) - found[id].nll for id in common])
    threads = [found[id].thread_id for id in common]
    lower, _ = thread_bootstrap(margins, threads, confidence=confidence, draws=draws, seed=seed)
    return Specificity(
        margin=float(margins.mean()),
        lower=lower,
        best_share=float((margins > 0).mean()),  # a tie is no win
        chance=1 / (len(others) + 2),
        own_minus_reference=own.mean - elsewhere.mean,
        references=len(others),
        mails=len(common),
    )


def mean_loss(losses: Iterable[MailLoss]) -> float:
    """Return the mean over all reply tokens (not over mails), nat per token; NaN without tokens."""
    total = tokens = 0.0
    for loss in losses:
        total += loss.nll * loss.tokens
        tokens += loss.tokens
    return total / tokens if tokens else float("nan")


def thread_bootstrap(
    values: NDArray[np.float64],
    threads: Sequence[str],
    *,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = SEED,
) -> tuple[float, float]:
    """Return the one-sided lower and upper bounds of the mean of `values`, whole threads drawn again.

    Percentile method (Efron and Tibshirani 1993, ch. 13) with clusters (Davison and Hinkley 1997, §3.8).
    The draws depend on the number of threads and the seed alone. With one thread both bounds are the mean,
    and say nothing: the gate asks for `min_held_out_threads`.
    """
    names = sorted(set(threads))
    place = {name: index for index, name in enumerate(names)}
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for value, thread in zip(values, threads, strict=True):
        sums[place[thread]] += value
        counts[place[thread]] += 1
    drawn = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return float(np.quantile(means, 1 - confidence)), float(np.quantile(means, confidence))


def bootstrap_statistic(
    size: int,
    statistic: Callable[[NDArray[np.int64]], float],
    *,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = SEED,
) -> tuple[float, float]:
    """Return one-sided bounds of `statistic(indices)` over draws of `size` indices with replacement."""
    drawn = np.random.default_rng(seed).integers(size, size=(draws, size))
    found = np.array([statistic(indices) for indices in drawn])
    return float(np.quantile(found, 1 - confidence)), float(np.quantile(found, confidence))


def _differences(
    other: Sequence[MailLoss], model: Sequence[MailLoss]
) -> tuple[NDArray[np.float64], list[str]]:
    losses = {loss.example_id: loss.nll for loss in other if _measurable(loss)}
    pairs = [
        (losses[loss.example_id] - loss.nll, loss.thread_id)
        for loss in model
        if _measurable(loss) and loss.example_id in losses
    ]
    return np.array([difference for difference, _ in pairs]), [thread for _, thread in pairs]


def _measurable(loss: MailLoss) -> bool:
    return loss.tokens > 0 and math.isfinite(loss.nll)
