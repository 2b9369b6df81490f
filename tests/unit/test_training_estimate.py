"""What training will take, before it starts; and how close that is once a device has been measured."""

from __future__ import annotations

from typing import Any

import pytest

import training.estimate
from tests.bases import tiny_base_model
from training.config import TrainConfig
from training.estimate import (
    CHARACTERS_PER_TOKEN,
    FIXED_SECONDS,
    FP32_SHARE,
    TEMPLATE_TOKENS,
    Rates,
    characters_of,
    describe_estimate,
    estimate_error,
    estimate_training,
    rates_of,
)
from training.schemas import Example, Job, JobMetrics, MeasuredRun

CONFIG = TrainConfig(epochs=3)
BASE = tiny_base_model(cpu_tokens_per_second=500, gpu_tokens_per_second=9000)
CPU = "cpu (2 threads)"


def mails(count: int, characters: int) -> list[Example]:
    return [Example(id=f"m{n}", thread_id="t", instruction="", output="x" * characters) for n in range(count)]


def at_rate(tokens_per_second: float) -> Rates:
    return Rates(tokens_per_second)


def run(config: TrainConfig = CONFIG, **changes: Any) -> MeasuredRun:
    """Return 100 mails of 400 characters: 3 epochs at 500 tokens a second, 20 s beside them, 5 s of load."""
    fields: dict[str, Any] = {
        "device": CPU,
        "config": config.model_dump(mode="json"),
        "train_tokens": 3 * (100 * TEMPLATE_TOKENS + 10_000),
        "train_seconds": 3 * (100 * TEMPLATE_TOKENS + 10_000) / 500,
        "device_seconds": 3 * (100 * TEMPLATE_TOKENS + 10_000) / 500 + 25,
        "load_seconds": 5,
        "steps": 90,
        "epochs": 3,
        "examples": 100,
        "characters": 40_000,
    }
    return MeasuredRun.model_validate(fields | changes)


# ---- the first guess -------------------------------------------------------------------------------


def test_tokens_are_prompt_and_reply_times_epochs() -> None:
    estimate = estimate_training(mails(10, 400), CONFIG, at_rate(500), 0.0)
    assert estimate.tokens == 10 * 3 * (TEMPLATE_TOKENS + 400 / CHARACTERS_PER_TOKEN)


def test_seconds_are_tokens_at_the_measured_rate_and_the_fixed_part() -> None:
    estimate = estimate_training(mails(10, 400), CONFIG, at_rate(408), 0.0)
    assert estimate.seconds == pytest.approx(FIXED_SECONDS + 10, abs=0.1)
    assert (estimate.tokens_per_second, estimate.cost) == (408, 0)


def test_the_cost_is_the_hourly_price_of_those_seconds() -> None:
    estimate = estimate_training(mails(10, 400), CONFIG, at_rate(408), 3.6)
    assert estimate.cost == pytest.approx(estimate.seconds * 0.001, abs=1e-4)


def test_a_document_costs_no_more_than_what_is_trained_of_it() -> None:
    estimate = estimate_training(mails(1, 140_000), CONFIG, at_rate(500), 0.0)
    assert estimate.tokens == CONFIG.epochs * CONFIG.max_seq_tokens


def test_a_step_limit_limits_the_tokens() -> None:
    short = CONFIG.model_copy(update={"max_steps": 2})
    assert estimate_training(mails(500, 400), short, at_rate(500), 0.0).tokens == 2 * short.batch_tokens


def test_no_examples_cost_the_fixed_part_only() -> None:
    assert estimate_training([], CONFIG, at_rate(500), 0.0).seconds == FIXED_SECONDS


@pytest.mark.parametrize(
    ("device", "has_bf16", "rate"),
    [
        ("", True, 500),
        (CPU, True, 500),
        ("", False, 500 * FP32_SHARE),
        (CPU, False, 500 * FP32_SHARE),
        ("NVIDIA L4", False, 9000),
    ],
)
def test_before_the_first_training_the_kind_of_the_last_device_decides_the_guess(
    monkeypatch: pytest.MonkeyPatch, device: str, has_bf16: bool, rate: float
) -> None:
    monkeypatch.setattr(training.estimate, "processor_has_bf16", lambda: has_bf16)
    rates = rates_of(BASE, CONFIG, device, [])
    assert (rates.tokens_per_second, rates.fixed_seconds, rates.runs) == (rate, FIXED_SECONDS, 0)


# ---- once measured ---------------------------------------------------------------------------------


def test_one_run_gives_its_rate_its_fixed_part_and_its_tokens_per_character() -> None:
    rates = rates_of(BASE, CONFIG, CPU, [run(train_tokens=3 * (100 * TEMPLATE_TOKENS + 20_000))])
    assert rates.tokens_per_character == pytest.approx(0.5)
    assert rates.fixed_seconds == pytest.approx(25)
    assert (rates.runs, rates.device, rates.epochs_share) == (1, CPU, 1.0)


def test_one_slow_run_on_a_busy_machine_changes_nothing() -> None:
    slow = run(train_seconds=900, device_seconds=1200)
    rates = rates_of(BASE, CONFIG, CPU, [slow, run(), run(), run(), run()])
    assert (rates.tokens_per_second, rates.fixed_seconds) == (pytest.approx(500), pytest.approx(25))


def test_only_the_five_newest_runs_count() -> None:
    old = run(train_seconds=9000, device_seconds=9900)
    assert rates_of(BASE, CONFIG, CPU, [run()] * 5 + [old] * 20).tokens_per_second == pytest.approx(500)


def test_runs_of_the_same_preset_count_alone_where_there_are_any() -> None:
    smoke = TrainConfig(epochs=1, max_steps=6)
    fast = run(smoke, train_seconds=1, device_seconds=9, steps=6, epochs=0.2)
    assert rates_of(BASE, CONFIG, CPU, [fast, fast, run()]).tokens_per_second == pytest.approx(500)
    assert rates_of(BASE, CONFIG, CPU, [fast]).tokens_per_second == fast.train_tokens
    # What was cut short by a limit of steps says nothing about an early stop.
    assert rates_of(BASE, CONFIG, CPU, [fast]).epochs_share == 1.0


def test_the_same_training_under_another_name_or_seed_is_the_same_preset() -> None:
    renamed = CONFIG.model_copy(update={"name": "mine", "seed": 99})
    other_rank = CONFIG.model_copy(update={"batch_tokens": 4096})
    runs = [run(other_rank, train_seconds=1, device_seconds=9), run(renamed)]
    assert rates_of(BASE, CONFIG, CPU, runs).tokens_per_second == pytest.approx(500)


def test_trainings_of_one_preset_count_together_whatever_was_chosen_for_each_mailbox() -> None:
    def chosen(epochs: int, **lora: float) -> TrainConfig:
        fields = ["epochs", "lora.dropout"]
        return TrainConfig.model_validate(
            {"epochs": epochs, "lora": lora, "chosen": {"fields": fields, "reason": "why"}}
        )

    same, other = run(chosen(6, dropout=0.1), train_seconds=1000), run(chosen(6, rank=8), train_seconds=1)
    rates = rates_of(BASE, chosen(3, dropout=0.05), CPU, [other, same])
    assert rates.runs == 1
    assert rates.tokens_per_second == same.train_tokens / 1000


def test_an_early_stop_shortens_the_next_estimate() -> None:
    rates = rates_of(BASE, CONFIG, CPU, [run(epochs=2, train_tokens=27_200, train_seconds=54.4)])
    assert rates.epochs_share == pytest.approx(2 / 3)
    estimate = estimate_training(mails(100, 400), CONFIG, rates, 0.0)
    assert estimate.tokens == pytest.approx(27_200, rel=0.01)


def test_the_jobs_of_a_cohort_that_found_the_base_loaded_do_not_hide_the_load() -> None:
    later = run(load_seconds=0, device_seconds=run().device_seconds - 5)
    assert rates_of(BASE, CONFIG, CPU, [later, later, run()]).fixed_seconds == pytest.approx(25)


def test_a_step_limit_is_estimated_by_the_tokens_that_a_step_really_had() -> None:
    smoke = TrainConfig(epochs=1, max_steps=6)
    rates = rates_of(BASE, smoke, CPU, [run(smoke, train_tokens=2400, steps=6)])
    assert estimate_training(mails(500, 400), smoke, rates, 0.0).tokens == 2400


# ---- afterwards ------------------------------------------------------------------------------------


def job(estimated: float | None, took: float | None) -> Job:
    metrics = JobMetrics(device_seconds=took)
    return Job(id="j", user_id="u", version=1, base_model="b", estimated_seconds=estimated, metrics=metrics)


def test_the_error_is_a_share_of_what_it_took() -> None:
    assert estimate_error(job(95, 76)) == pytest.approx(0.25)
    assert estimate_error(job(95, None)) is None and estimate_error(job(None, 76)) is None


def test_a_person_reads_the_estimate_beside_what_it_took() -> None:
    assert describe_estimate(job(95, 88)) == "estimated 95 s, took 88 s (8% too much)"
    assert describe_estimate(job(88, 95)) == "estimated 88 s, took 95 s (7% too little)"
    assert describe_estimate(job(95, None)) == "estimated 95 s"
    assert describe_estimate(job(None, 88)) == ""


@pytest.mark.parametrize("count", [60, 400])
@pytest.mark.parametrize("characters", [250, 900])
def test_after_one_run_a_mailbox_of_another_size_is_estimated_within_a_quarter(
    count: int, characters: int
) -> None:
    """The machine: 430 tokens a second, 4.6 characters a token, 4 s of load and 0.1 s per held-out mail."""

    def take(mail_count: int, length: int) -> MeasuredRun:
        tokens = 3 * 0.9 * mail_count * (41 + length / 4.6)  # a tenth is the validation slice
        beside = 4 + 6 + 0.1 * min(60, max(20, 0.15 * mail_count))
        return run(
            train_tokens=round(tokens),
            train_seconds=tokens / 430,
            device_seconds=tokens / 430 + beside,
            load_seconds=4,
            examples=mail_count,
            characters=mail_count * length,
        )

    rates = rates_of(BASE, CONFIG, CPU, [take(120, 450)])
    estimate = estimate_training(mails(count, characters), CONFIG, rates, 0.0)
    took = take(count, characters)
    assert estimate.seconds == pytest.approx(took.device_seconds, rel=0.25)
    assert characters_of(mails(count, characters), CONFIG) == took.characters
