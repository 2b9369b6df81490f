"""Decisions of the gate and numbers of a job, made by hand: what pages and terminals are tested on."""

from __future__ import annotations

import operator
from typing import Any

from training.schemas import CheckRole, GateCheck, GateDecision, JobMetrics, Outcome

RELATIONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt}


def check(
    name: str,
    value: float,
    relation: str,
    limit: float,
    *,
    metric: str = "skill",
    role: CheckRole = CheckRole.HARD,
    label: str = "",
) -> GateCheck:
    return GateCheck(
        metric=metric,
        name=name,
        value=value,
        limit=limit,
        relation=relation,
        met=RELATIONS[relation](value, limit),
        role=role,
        label=label or f"the {name}",
    )


def decision(
    *checks: GateCheck,
    outcome: Outcome = Outcome.PROMOTED,
    reason: str = "It is better.",
    numbers: dict[str, float] | None = None,
) -> GateDecision:
    return GateDecision(outcome=outcome, reason=reason, numbers=numbers or {}, checks=checks)


def metrics(**fields: Any) -> JobMetrics:
    """Return the numbers of a training of 8 steps; `fields` replace any of them."""
    values: dict[str, Any] = {
        "held_out_nll_base": 4.0,
        "held_out_nll_adapter": 3.2,
        "held_out_emails": 25,
        "steps": 8,
        "loss_curve": tuple((step, 4.2 - 0.2 * step) for step in range(1, 9)),
        "validation_curve": ((0, 4.1), (4, 3.4), (8, 3.3)),
    }
    return JobMetrics.model_validate(values | fields)


def refused() -> GateDecision:
    """A retrain that gained too little, copied twice, and whose judge was too weak to count."""
    vote, shown = CheckRole.VOTE, CheckRole.SHOWN
    return decision(
        check("gain", 0.0996, ">=", 0.1, label="the gain over the base (nat per token)"),
        check("gainLower", 0.04, ">", 0, label="the lower bound of the gain over the base"),
        check("voice", 0.62, ">=", 0.5, metric="voice", role=shown, label="the voice score"),
        check("gapClosed", 0.3, ">=", 0.5, metric="style", role=vote,
              label="the share of the style gap that is closed"),
        check("copies", 2, "<=", 1, metric="harm", label="the number of outputs that copy a training mail"),
        check("recallOverBase", 0.02, ">=", -0.05, metric="harm",
              label="the recall of the prompts' names, numbers and dates against the base"),
        outcome=Outcome.KEPT_CURRENT,
        reason="The adapter in use stays: the gain over the base (nat per token) is 0.0996 and must be at "
        "least 0.10, and 1 more check failed. Train again when there is more mail.",
        numbers={"voiceFloor": 0.2, "voiceCeiling": 0.7, "voiceOfOutputs": 0.51, "voiceOfCurrent": 0.55},
    )  # fmt: skip
