"""Skill and specificity from losses per mail: cases that can be computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.schemas import MailLoss
from training.skill import bootstrap_statistic, mean_loss, measure_specificity, paired_skill, thread_bootstrap


def losses(*nlls: float, threads: str = "", tokens: int = 50) -> list[MailLoss]:
    """One mail each; `threads` names the thread of each by a letter (default: all apart)."""
    letters = threads or [f"t{n}" for n in range(len(nlls))]
    return [
        MailLoss(example_id=f"m{n}", thread_id=thread, nll=nll, tokens=tokens)
        for n, (nll, thread) in enumerate(zip(nlls, letters, strict=True))
    ]


def test_skill_is_the_mean_difference_over_mails() -> None:
    skill = paired_skill(losses(3.0, 4.0), losses(2.5, 3.9))
    assert skill is not None
    assert skill.mean == pytest.approx(0.3)
    assert skill.spread == pytest.approx(math.sqrt(0.08))  # of 0.5 and 0.1
    assert (skill.mails, skill.threads) == (2, 2)


def test_a_long_mail_weighs_no_more_than_a_short_one() -> None:
    base = [*losses(3.0, tokens=900), MailLoss(example_id="short", thread_id="s", nll=3.0, tokens=3)]
    model = [*losses(2.0, tokens=900), MailLoss(example_id="short", thread_id="s", nll=3.0, tokens=3)]
    skill = paired_skill(base, model)
    assert skill is not None and skill.mean == pytest.approx(0.5)


def test_a_constant_difference_has_no_uncertainty() -> None:
    skill = paired_skill(losses(3.0, 4.0, 5.0), losses(2.5, 3.5, 4.5))
    assert skill is not None
    assert skill.lower == pytest.approx(0.5) and skill.upper == pytest.approx(0.5)


def test_mails_are_matched_by_id_and_the_unmeasurable_are_left_out() -> None:
    model = [*reversed(losses(2.0, 2.5, math.nan, 1.0))]
    base = [*losses(3.0, 3.0, 3.0), MailLoss(example_id="m3", thread_id="t3", nll=0.0, tokens=0)]
    skill = paired_skill(base, model)
    assert skill is not None
    assert (skill.mails, skill.mean) == (2, pytest.approx(0.75))
    assert paired_skill([], losses(1.0)) is None


def test_the_bounds_come_from_threads_and_not_from_mails() -> None:
    # Forty mails, but only two conversations, which disagree: nearly nothing is known.
    differences = [1.0] * 20 + [-0.5] * 20
    base, model = losses(*[3.0] * 40), losses(*[3.0 - d for d in differences])
    alone = paired_skill(base, model)
    together = paired_skill(base, losses(*[3.0 - d for d in differences], threads="a" * 20 + "b" * 20))
    assert alone is not None and together is not None
    assert alone.mean == together.mean == pytest.approx(0.25)
    assert alone.lower > 0 > together.lower


def test_one_conversation_has_bounds_without_a_width() -> None:
    """Why the gate counts conversations (`min_held_out_threads`)."""
    skill = paired_skill(losses(3.0, 4.0, 5.0), losses(2.5, 3.0, 5.5, threads="aaa"))
    assert skill is not None and skill.threads == 1
    assert skill.lower == skill.mean == skill.upper


def test_the_bootstrap_draws_what_can_be_enumerated() -> None:
    # Two threads of one mail: means 0, 1/2 and 1 with chances 1/4, 1/2 and 1/4.
    lower, upper = thread_bootstrap(np.array([0.0, 1.0]), ["a", "b"], confidence=0.70)
    assert (lower, upper) == (0.5, 0.5)
    lower, upper = thread_bootstrap(np.array([0.0, 1.0]), ["a", "b"], confidence=0.80)
    assert (lower, upper) == (0.0, 1.0)


def test_the_same_seed_gives_the_same_bounds() -> None:
    base, model = losses(*range(3, 33)), losses(*(n * 0.9 for n in range(3, 33)))
    assert paired_skill(base, model) == paired_skill(base, model)
    assert paired_skill(base, model) != paired_skill(base, model, seed=18)


def test_the_order_of_mails_changes_nothing() -> None:
    base, model = losses(*range(3, 33)), losses(*(n * 0.9 for n in range(3, 33)))
    assert paired_skill(base, model) == paired_skill(base[::-1], model)


def test_39_mails_show_a_tenth_of_a_nat() -> None:
    skill = paired_skill(losses(3.0, 3.0), losses(3.0 - 0.25, 3.0 + 0.25))
    assert skill is not None
    quarter = skill.model_copy(update={"spread": 0.25})
    assert quarter.needed_mails(0.10) == 39  # references/voice.md §3, metric 1
    assert quarter.needed_mails(0.14) == 20


def test_specificity_is_measured_against_the_best_of_the_others() -> None:
    found = measure_specificity(
        candidate=losses(2.0, 2.0, 3.0),
        base=losses(3.0, 3.0, 3.5),
        references={"anna": losses(2.5, 2.8, 2.9), "ben": losses(2.6, 2.2, 3.3)},
        base_on_reference_mail=losses(3.0, 3.0),
        candidate_on_reference_mail=losses(2.9, 2.9),
    )
    assert found is not None
    assert found.margin == pytest.approx((0.5 + 0.2 - 0.1) / 3)
    assert found.best_share == pytest.approx(2 / 3)
    assert found.chance == 1 / 4
    # own skill (1 + 1 + 0.5) / 3, on reference mail 0.1
    assert found.own_minus_reference == pytest.approx(2.5 / 3 - 0.1)


def test_the_base_is_one_of_the_others() -> None:
    found = measure_specificity(
        losses(2.0), losses(1.9), {"anna": losses(2.5)},
        base_on_reference_mail=losses(3.0), candidate_on_reference_mail=losses(3.0),
    )  # fmt: skip
    assert found is not None
    assert found.margin == pytest.approx(-0.1) and found.best_share == 0


def test_a_tie_is_no_win() -> None:
    found = measure_specificity(
        losses(2.0), losses(3.0), {"anna": losses(2.0)},
        base_on_reference_mail=losses(3.0), candidate_on_reference_mail=losses(3.0),
    )  # fmt: skip
    assert found is not None and found.best_share == 0


def test_without_a_panel_there_is_no_specificity() -> None:
    nothing = measure_specificity(
        losses(2.0),
        losses(3.0),
        {},
        base_on_reference_mail=losses(3.0),
        candidate_on_reference_mail=losses(3.0),
    )
    assert nothing is None


def test_a_statistic_of_a_set_is_drawn_over_its_members() -> None:
    values = np.array([0.0, 1.0])
    assert bootstrap_statistic(2, lambda drawn: float(values[drawn].max()), confidence=0.80) == (0.0, 1.0)


def test_the_mean_loss_is_over_tokens_not_over_mails() -> None:
    assert mean_loss([*losses(1.0, tokens=90), *losses(2.0, tokens=10)]) == pytest.approx(1.1)
    assert math.isnan(mean_loss([]))
