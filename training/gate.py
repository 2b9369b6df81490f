"""The gate: does this adapter go live? Every finished training ends here, with numbers and one sentence.

For now the decision rests on held-out loss alone; `decide` is the seam that the full gate (specificity,
voice score, style distance, do-no-harm) fills without its callers changing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from training.config import TrainConfig
from training.schemas import GateDecision, MailLoss, Outcome

MIN_HELD_OUT = 4
"""Fewer held-out mails than this prove nothing at all."""
MAX_LOSS_TO_CURRENT = 0.02
"""Nat per token that a retrain may be worse than the adapter in use (references/voice.md §3, metric 1)."""


def decide(
    base: Sequence[MailLoss],
    candidate: Sequence[MailLoss],
    current: Sequence[MailLoss] | None,
    config: TrainConfig,
) -> GateDecision:
    """Decide by held-out loss against the base and, when there is one, the adapter in use."""
    nll_base, nll_candidate = mean_loss(base), mean_loss(candidate)
    nll_current = mean_loss(current) if current is not None else math.nan
    gain = nll_base - nll_candidate
    numbers = {"heldOutNllBase": nll_base, "heldOutNllAdapter": nll_candidate, "gain": gain}
    if current is not None:
        numbers["heldOutNllCurrent"] = nll_current
    measured = f"{nll_base:.2f} → {nll_candidate:.2f} nat per token on {len(candidate)} held-out mails"
    # NaN is no JSON, and PostgreSQL refuses it.
    numbers = {name: value for name, value in numbers.items() if math.isfinite(value)}
    if len(candidate) < MIN_HELD_OUT:
        return GateDecision(
            outcome=Outcome.NOT_PROVEN,
            reason=f"Not proven: {len(candidate)} held-out mails are too few to measure anything "
            f"({MIN_HELD_OUT} are needed).",
            numbers=numbers,
        )
    if not math.isfinite(gain):
        return GateDecision(
            outcome=Outcome.NOT_PROVEN,
            reason=f"Not proven: the loss on {len(candidate)} held-out mails is not a number "
            f"({measured}). Lower learning_rate and train again.",
            numbers=numbers,
        )
    if gain <= config.promote_below:
        return GateDecision(
            outcome=Outcome.NOT_PROVEN if current is None else Outcome.KEPT_CURRENT,
            reason=f"The adapter does not write more like the user than the base does ({measured}; "
            f"it must gain more than {config.promote_below:g}).",
            numbers=numbers,
        )
    if current is not None and nll_candidate > nll_current + MAX_LOSS_TO_CURRENT:
        return GateDecision(
            outcome=Outcome.KEPT_CURRENT,
            reason=f"The adapter in use is better: {nll_current:.2f} against {nll_candidate:.2f} nat per "
            f"token on {len(candidate)} held-out mails (allowed: {MAX_LOSS_TO_CURRENT:g} worse).",
            numbers=numbers,
        )
    against = "the base"
    if current is not None:
        against += (
            " and is no worse than the adapter in use"
            if math.isfinite(nll_current)
            else " (the adapter in use gives no measurable loss)"
        )
    return GateDecision(
        outcome=Outcome.PROMOTED,
        reason=f"The adapter predicts the user's own replies better than {against}: {measured}.",
        numbers=numbers,
    )


def mean_loss(losses: Iterable[MailLoss]) -> float:
    """Return the mean over all reply tokens (not over mails), nat per token; NaN without tokens."""
    total = tokens = 0.0
    for loss in losses:
        total += loss.nll * loss.tokens
        tokens += loss.tokens
    return total / tokens if tokens else float("nan")
