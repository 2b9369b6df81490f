"""Who goes live, who stays, and in which words."""

from __future__ import annotations

import json
import math

import pytest

from training.config import TrainConfig
from training.gate import MAX_LOSS_TO_CURRENT, MIN_HELD_OUT, decide, mean_loss
from training.schemas import MailLoss, Outcome

CONFIG = TrainConfig()


def losses(nll: float, count: int = 20, tokens: int = 50) -> list[MailLoss]:
    return [MailLoss(example_id=f"m{n}", thread_id=f"t{n}", nll=nll, tokens=tokens) for n in range(count)]


def test_a_better_first_adapter_is_promoted_with_its_numbers() -> None:
    decision = decide(losses(3.0), losses(2.5), None, CONFIG)
    assert decision.outcome is Outcome.PROMOTED
    assert decision.reason == (
        "The adapter predicts the user's own replies better than the base: "
        "3.00 → 2.50 nat per token on 20 held-out mails."
    )
    assert decision.numbers == {"heldOutNllBase": 3.0, "heldOutNllAdapter": 2.5, "gain": 0.5}


@pytest.mark.parametrize("candidate", [3.0, 3.2])
def test_a_first_adapter_that_is_not_better_is_not_proven(candidate: float) -> None:
    decision = decide(losses(3.0), losses(candidate), None, CONFIG)
    assert decision.outcome is Outcome.NOT_PROVEN
    assert "does not write more like the user" in decision.reason


def test_the_gain_must_exceed_what_the_preset_asks() -> None:
    strict = TrainConfig(promote_below=0.5)
    assert decide(losses(3.0), losses(2.5), None, strict).outcome is Outcome.NOT_PROVEN
    assert decide(losses(3.0), losses(2.25), None, strict).outcome is Outcome.PROMOTED


def test_a_retrain_no_better_than_the_base_keeps_the_adapter_in_use() -> None:
    decision = decide(losses(3.0), losses(3.0), losses(2.9), CONFIG)
    assert decision.outcome is Outcome.KEPT_CURRENT


def test_a_retrain_worse_than_the_adapter_in_use_is_kept_away() -> None:
    decision = decide(losses(3.0), losses(2.53), losses(2.5), CONFIG)
    assert decision.outcome is Outcome.KEPT_CURRENT
    assert "The adapter in use is better: 2.50 against 2.53" in decision.reason
    assert decision.numbers["heldOutNllCurrent"] == 2.5


def test_a_retrain_may_be_a_hair_worse() -> None:
    decision = decide(losses(3.0), losses(2.5 + MAX_LOSS_TO_CURRENT / 2), losses(2.5), CONFIG)
    assert decision.outcome is Outcome.PROMOTED
    assert "no worse than the adapter in use" in decision.reason


def test_too_few_held_out_mails_prove_nothing() -> None:
    few = MIN_HELD_OUT - 1
    decision = decide(losses(3.0, few), losses(1.0, few), None, CONFIG)
    assert decision.outcome is Outcome.NOT_PROVEN
    assert f"{few} held-out mails are too few" in decision.reason
    assert decide(losses(3.0, MIN_HELD_OUT), losses(1.0, MIN_HELD_OUT), None, CONFIG).outcome is (
        Outcome.PROMOTED
    )


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_not_a_number_is_not_proven_and_not_blamed_on_the_mails(broken: float) -> None:
    decision = decide(losses(3.0), losses(broken), None, CONFIG)
    assert decision.outcome is Outcome.NOT_PROVEN
    assert "not a number" in decision.reason and "too few" not in decision.reason


def test_an_adapter_in_use_that_cannot_be_measured_does_not_block_a_good_one() -> None:
    decision = decide(losses(3.0), losses(2.5), losses(math.nan), CONFIG)
    assert decision.outcome is Outcome.PROMOTED
    assert "no measurable loss" in decision.reason


@pytest.mark.parametrize("current", [None, losses(math.nan), losses(2.0), []])
@pytest.mark.parametrize("candidate", [losses(math.nan), losses(2.5), losses(9.9), []])
def test_the_numbers_are_always_json(candidate: list[MailLoss], current: list[MailLoss] | None) -> None:
    json.dumps(decide(losses(3.0), candidate, current, CONFIG).to_json_dict(), allow_nan=False)


def test_the_mean_is_over_tokens_not_over_mails() -> None:
    assert mean_loss([*losses(1.0, 1, tokens=90), *losses(2.0, 1, tokens=10)]) == pytest.approx(1.1)
    assert math.isnan(mean_loss([]))
