"""A decision of the gate in words and numbers, before it is drawn: what a page and a terminal both say.

Nothing here decides: it orders the checks of a `GateDecision` by metric, says each value and limit as a
person reads them, and picks out the numbers of the two pictures (loss by step, and the voice between base and
person).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from training.schemas import CheckRole, GateCheck, GateDecision, JobMetrics

RELATION_WORDS = {">=": "at least", "<=": "at most", ">": "above"}
METRIC_TITLES = {
    "skill": "Skill: predicts the person's own mail",
    "specificity": "Specificity: this person, not just mail",
    "voice": "Voice: a judge of authorship takes it for theirs",
    "style": "Style: has the person's habits",
    "harm": "No harm: leaks, copies, overfitting, obedience",
}
"""In the order of the checks."""
REQUIRED = {"skill", "harm"}
"""Metrics that must pass; of the others, most must."""
_MOST_DIGITS = 6
ONLY_SHOWN = "Only shown: there is too little to measure it by, so it decides nothing."


class Verdict(StrEnum):
    """What became of one check, in the words of a table."""

    MET = "met"
    MISSED = "missed"
    SHOWN = "only shown"

    @property
    def mark(self) -> str:
        """One character, for those who see no colour."""
        return {"met": "✓", "missed": "✗", "only shown": "·"}[self.value]


class CheckWords(NamedTuple):
    """One row of the table."""

    label: str
    value: str
    must_be: str
    verdict: Verdict


class MetricWords(NamedTuple):
    """The rows of one metric; none: it was not measured."""

    metric: str
    title: str
    rows: tuple[CheckWords, ...]
    verdict: Verdict | None
    """Of the metric as a whole; None: not measured."""

    @property
    def weight(self) -> str:
        """What the metric is to the decision, in the words of a table."""
        if self.verdict is None:
            return "not measured"
        if self.metric in REQUIRED:
            return "required"
        return "no vote" if self.verdict is Verdict.SHOWN else "one vote"


class VoiceScores(NamedTuple):
    """Voice scores on the scale where the base is 0 and the person is 1."""

    candidate: float
    current: float | None
    """Of the adapter in use; None: there is none, or it was not measured."""
    must_be: float | None
    only_shown: bool
    """The judge is too weak to decide."""


class LossSeries(NamedTuple):
    """Losses of one training, nat per reply token; every number is finite."""

    training: tuple[tuple[int, float], ...]
    """(step, loss)."""
    validation: tuple[tuple[int, float], ...]
    """(step, loss on the validation slice)."""
    held_out: tuple[tuple[str, float], ...]
    """(whose, mean loss on held-out mail): base, adapter, in use."""


def say_number(value: float, beside: float | None = None) -> str:
    """Return a number as a person reads it: 0.0 as "0", 0.123 as "0.12", 0.004 as "0.004".

    `beside` is the limit that it is compared with: 0.0996 beside 0.1 is "0.0996", because "0.10 and must be
    at least 0.10" says nothing.
    """
    text = _rounded(value)
    if beside is None or math.isclose(value, beside, abs_tol=1e-9):
        return text
    digits = 3
    while float(text) == float(_rounded(beside)) and digits <= _MOST_DIGITS:
        text, digits = f"{value:.{digits}f}", digits + 1
    return text


def say_limit(check: GateCheck) -> str:
    """Return what a check asks for, as "at least 0.10"."""
    rounded = _rounded(check.limit)
    exact = rounded if float(rounded) == check.limit else f"{check.limit:g}"
    return f"{RELATION_WORDS[check.relation]} {exact}"


def words_of_metrics(decision: GateDecision) -> tuple[MetricWords, ...]:
    """Return the table of a decision, metric by metric; empty for one that was made without checks."""
    if not decision.checks:
        return ()
    metrics = dict.fromkeys([*METRIC_TITLES, *(check.metric for check in decision.checks)])
    return tuple(
        _words_of_metric(metric, [check for check in decision.checks if check.metric == metric])
        for metric in metrics
    )


def _words_of_metric(metric: str, checks: Sequence[GateCheck]) -> MetricWords:
    rows = tuple(words_of_check(check) for check in checks)
    deciding = {check.role for check in checks}
    verdict: Verdict | None = None
    if any(row.verdict is Verdict.MISSED for row in rows):
        verdict = Verdict.MISSED
    # A voting metric may hold a hard check (no worse than the adapter in use), which is no vote for it.
    elif (CheckRole.HARD if metric in REQUIRED else CheckRole.VOTE) in deciding:
        verdict = Verdict.MET
    elif rows:
        verdict = Verdict.SHOWN
    return MetricWords(metric, METRIC_TITLES.get(metric, metric), rows, verdict)


def words_of_check(check: GateCheck) -> CheckWords:
    """Return one check as a row: what, how much, how much it must be, and what became of it."""
    verdict = Verdict.MET if check.met else Verdict.MISSED
    if check.role is CheckRole.SHOWN:
        verdict = Verdict.SHOWN
    return CheckWords(
        check.label.removeprefix("the "), say_number(check.value, check.limit), say_limit(check), verdict
    )


def missed_checks(decision: GateDecision) -> tuple[CheckWords, ...]:
    """Return the checks that were missed and count, in the order of the metrics."""
    rows = (words_of_check(check) for check in decision.checks)
    return tuple(row for row in rows if row.verdict is Verdict.MISSED)


def voice_scores(decision: GateDecision) -> VoiceScores | None:
    """Return what the ruler between base and person shows; None when the voice was not measured."""
    found = next((check for check in decision.checks if check.name == "voice"), None)
    numbers = decision.numbers
    floor, ceiling = numbers.get("voiceFloor"), numbers.get("voiceCeiling")
    # Without room between the two every score would be 0, and a ruler of no length tells nothing.
    if found is None or floor is None or ceiling is None or ceiling <= floor:
        return None
    current = numbers.get("voiceOfCurrent")
    return VoiceScores(
        candidate=found.value,
        current=None if current is None else (current - floor) / (ceiling - floor),
        must_be=found.limit,
        only_shown=found.role is CheckRole.SHOWN,
    )


def loss_series(metrics: JobMetrics) -> LossSeries | None:
    """Return what the picture of the loss shows; None when there is no curve to draw."""
    means = (
        ("base", metrics.held_out_nll_base),
        ("adapter", metrics.held_out_nll_adapter),
        ("in use", metrics.held_out_nll_current),
    )
    series = LossSeries(
        training=_finite(metrics.loss_curve),
        validation=_finite(metrics.validation_curve),
        held_out=tuple((whose, nll) for whose, nll in means if nll is not None and math.isfinite(nll)),
    )
    return series if series.training or series.validation else None


def say_held_out(metrics: JobMetrics) -> str:
    """Return the held-out losses as a sentence; empty before they are measured."""
    base, adapter = metrics.held_out_nll_base, metrics.held_out_nll_adapter
    if base is None or adapter is None:
        return ""
    current = metrics.held_out_nll_current
    in_use = "" if current is None else f", the adapter in use {current:.2f}"
    return (
        f"Held-out loss: base {base:.2f}, adapter {adapter:.2f}{in_use} nat per token "
        f"on {metrics.held_out_emails} mails."
    )


def _rounded(value: float) -> str:
    if value == 0 or abs(value) >= 100 or float(value).is_integer():
        return f"{value + 0.0:.0f}"  # + 0.0: no "-0"
    return f"{value:.2f}" if abs(value) >= 0.01 else f"{value:.3f}"


def _finite(points: Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    return tuple((step, loss) for step, loss in points if math.isfinite(loss))
