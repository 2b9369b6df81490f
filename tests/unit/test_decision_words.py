"""A decision in words: rounding never hides why a check was missed, and nothing unmeasured looks measured."""

from __future__ import annotations

import math

import pytest

from tests.decisions import check, decision, metrics
from training.decision_words import (
    METRIC_TITLES,
    Verdict,
    loss_series,
    missed_checks,
    say_held_out,
    say_limit,
    say_number,
    voice_scores,
    words_of_check,
    words_of_metrics,
)
from training.schemas import CheckRole, GateDecision, JobMetrics, Outcome


@pytest.mark.parametrize(
    ("value", "limit", "said"),
    [
        (0.0, 0.0, "0"),
        (-0.0, 0.0, "0"),
        (1.0, 0.95, "1"),
        (0.123, 0.5, "0.12"),
        (0.004, 0.5, "0.004"),
        (0.0996, 0.10, "0.0996"),
        (0.0004, 0.0, "0.0004"),
        (-0.0004, 0.0, "-0.0004"),
        (0.10, 0.10, "0.10"),
        (0.30000000000000004 - 0.2, 0.10, "0.10"),
        (1234.5, 1.6, "1234"),
    ],
)
def test_a_value_is_said_so_that_it_differs_from_its_limit(value: float, limit: float, said: str) -> None:
    assert say_number(value, limit) == said


def test_a_limit_of_three_digits_is_said_in_full() -> None:
    assert say_limit(check("gain", 0.5, ">=", 0.125)) == "at least 0.125"
    assert say_limit(check("gain", 0.5, ">", 0)) == "above 0"


@pytest.mark.parametrize(
    ("role", "met", "verdict"),
    [
        (CheckRole.HARD, True, Verdict.MET),
        (CheckRole.VOTE, False, Verdict.MISSED),
        (CheckRole.SHOWN, True, Verdict.SHOWN),
        (CheckRole.SHOWN, False, Verdict.SHOWN),
    ],
)
def test_what_decides_nothing_is_neither_met_nor_missed(role: CheckRole, met: bool, verdict: Verdict) -> None:
    value = 0.2 if met else 0.05
    assert words_of_check(check("gain", value, ">=", 0.1, role=role)).verdict is verdict


def test_missed_checks_are_those_that_count() -> None:
    found = decision(
        check("gain", 0.05, ">=", 0.1),
        check("copies", 0, "<=", 1, metric="harm"),
        check("voice", 0.1, ">=", 0.5, metric="voice", role=CheckRole.SHOWN),
        check("gapClosed", 0.3, ">=", 0.5, metric="style", role=CheckRole.VOTE),
    )
    assert [(row.value, row.must_be) for row in missed_checks(found)] == [
        ("0.05", "at least 0.10"),
        ("0.30", "at least 0.50"),
    ]


def test_a_metric_without_a_check_is_there_without_rows() -> None:
    found = {words.metric: words for words in words_of_metrics(decision(check("gain", 0.5, ">=", 0.1)))}
    assert list(found) == list(METRIC_TITLES)
    assert len(found["skill"].rows) == 1
    assert (found["voice"].rows, found["voice"].weight) == ((), "not measured")


@pytest.mark.parametrize(
    ("metric", "roles", "verdict", "weight"),
    [
        ("skill", {CheckRole.HARD: True}, Verdict.MET, "required"),
        ("harm", {CheckRole.HARD: False}, Verdict.MISSED, "required"),
        ("style", {CheckRole.VOTE: True, CheckRole.HARD: True}, Verdict.MET, "one vote"),
        ("style", {CheckRole.VOTE: True, CheckRole.HARD: False}, Verdict.MISSED, "one vote"),
        ("style", {CheckRole.HARD: True}, Verdict.SHOWN, "no vote"),
        ("voice", {CheckRole.SHOWN: False}, Verdict.SHOWN, "no vote"),
    ],
)
def test_a_metric_passes_by_the_checks_that_count_for_it(
    metric: str, roles: dict[CheckRole, bool], verdict: Verdict, weight: str
) -> None:
    """No worse than the adapter in use is a condition of a voting metric, and no vote for it."""
    checks = [check(role, 1, ">=", 0 if met else 2, metric=metric, role=role) for role, met in roles.items()]
    (found,) = [words for words in words_of_metrics(decision(*checks)) if words.metric == metric]
    assert (found.verdict, found.weight) == (verdict, weight)


def test_a_decision_of_before_has_no_table() -> None:
    assert words_of_metrics(GateDecision(outcome=Outcome.PROMOTED, reason="Better.")) == ()


def test_voice_of_the_adapter_in_use_is_on_the_same_scale() -> None:
    found = decision(
        check("voice", 0.62, ">=", 0.5, metric="voice", role=CheckRole.VOTE),
        numbers={"voiceFloor": 0.2, "voiceCeiling": 0.7, "voiceOfCurrent": 0.55},
    )
    scores = voice_scores(found)
    assert scores is not None and scores.current is not None
    assert (scores.candidate, scores.must_be, scores.only_shown) == (0.62, 0.5, False)
    assert math.isclose(scores.current, 0.7)


@pytest.mark.parametrize("numbers", [{}, {"voiceFloor": 0.5, "voiceCeiling": 0.5}])
def test_without_room_between_base_and_person_there_is_no_ruler(numbers: dict[str, float]) -> None:
    assert voice_scores(decision(check("voice", 0.0, ">=", 0.5, metric="voice"), numbers=numbers)) is None


def test_losses_that_are_no_numbers_are_not_drawn() -> None:
    series = loss_series(
        metrics(loss_curve=((1, 3.0), (2, math.nan)), held_out_nll_current=math.inf, validation_curve=())
    )
    assert series is not None
    assert (series.training, [whose for whose, _ in series.held_out]) == (((1, 3.0),), ["base", "adapter"])


def test_a_job_of_before_has_no_curve() -> None:
    assert loss_series(metrics(loss_curve=(), validation_curve=())) is None


def test_held_out_losses_name_the_adapter_in_use_when_there_is_one() -> None:
    assert say_held_out(metrics()) == ("Held-out loss: base 4.00, adapter 3.20 nat per token on 25 mails.")
    assert "adapter 3.20, the adapter in use 3.10 nat" in say_held_out(metrics(held_out_nll_current=3.1))
    assert say_held_out(JobMetrics()) == ""
