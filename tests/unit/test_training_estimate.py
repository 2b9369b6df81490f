"""What training will take, before it starts."""

from __future__ import annotations

import pytest

from training.config import TrainConfig
from training.estimate import CHARACTERS_PER_TOKEN, FIXED_SECONDS, TEMPLATE_TOKENS, estimate_training
from training.schemas import Example

CONFIG = TrainConfig(epochs=3)


def mails(count: int, characters: int) -> list[Example]:
    return [Example(id=f"m{n}", thread_id="t", instruction="", output="x" * characters) for n in range(count)]


def test_tokens_are_prompt_and_reply_times_epochs() -> None:
    estimate = estimate_training(mails(10, 400), CONFIG, 500, 0.0)
    assert estimate.tokens == 10 * 3 * (TEMPLATE_TOKENS + 400 / CHARACTERS_PER_TOKEN)


def test_seconds_are_tokens_at_the_measured_rate_and_the_fixed_part() -> None:
    estimate = estimate_training(mails(10, 400), CONFIG, 408, 0.0)
    assert estimate.seconds == pytest.approx(FIXED_SECONDS + 10, abs=0.1)
    assert (estimate.tokens_per_second, estimate.cost) == (408, 0)


def test_the_cost_is_the_hourly_price_of_those_seconds() -> None:
    estimate = estimate_training(mails(10, 400), CONFIG, 408, 3.6)
    assert estimate.cost == pytest.approx(estimate.seconds * 0.001, abs=1e-4)


def test_a_document_costs_no_more_than_what_is_trained_of_it() -> None:
    estimate = estimate_training(mails(1, 140_000), CONFIG, 500, 0.0)
    assert estimate.tokens == CONFIG.epochs * CONFIG.max_seq_tokens


def test_a_step_limit_limits_the_tokens() -> None:
    short = CONFIG.model_copy(update={"max_steps": 2})
    assert estimate_training(mails(500, 400), short, 500, 0.0).tokens == 2 * short.batch_tokens


def test_no_examples_cost_the_fixed_part_only() -> None:
    assert estimate_training([], CONFIG, 500, 0.0).seconds == FIXED_SECONDS
