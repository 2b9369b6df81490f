"""The plan of a run: batches, learning rate, and when a run counts as lost."""

from __future__ import annotations

import math
import random

import pytest

from tests.bases import tiny_base_model
from training.checkpoint import fingerprint
from training.config import TrainConfig
from training.dataset import EncodedExample
from training.errors import TrainingDiverged
from training.plan import (
    LONG_EPOCH_STEPS,
    looks_of,
    plan_epoch,
    plan_epochs,
    rate_factor,
    split_validation,
    trained_on,
)
from training.watch import (
    EXPLODED,
    stop_if_broken,
    stop_if_diverged,
    stop_if_flat,
    stop_if_useless,
    stop_if_validation_diverged,
)


def of_lengths(lengths: list[int]) -> list[EncodedExample]:
    return [EncodedExample(f"m{n}", "t", tuple(range(length)), 1) for n, length in enumerate(lengths)]


LENGTHS = random.Random(1).choices(range(2, 400), k=150)


# ---- batches ---------------------------------------------------------------------------------------


def test_every_example_is_in_exactly_one_batch() -> None:
    batches = plan_epoch(of_lengths(LENGTHS), 768, seed=17)
    assert sorted(index for batch in batches for index in batch) == list(range(len(LENGTHS)))


def test_no_batch_exceeds_its_tokens() -> None:
    for batch in plan_epoch(of_lengths(LENGTHS), 768, seed=17):
        assert len(batch) == 1 or sum(LENGTHS[index] for index in batch) <= 768


def test_an_example_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    batches = plan_epoch(of_lengths([2000, 5, 5, 1500]), 768, seed=17)
    assert {frozenset(batch) for batch in batches} == {frozenset({0}), frozenset({3}), frozenset({1, 2})}


def test_similar_lengths_share_a_batch() -> None:
    padded = sum(
        len(batch) * max(LENGTHS[index] for index in batch)
        for batch in plan_epoch(of_lengths(LENGTHS), 768, seed=17)
    )
    assert padded < 1.25 * sum(LENGTHS)


def test_the_seed_decides_the_plan_and_each_epoch_has_another() -> None:
    plan = plan_epoch(of_lengths(LENGTHS), 768, seed=17)
    other = plan_epoch(of_lengths(LENGTHS), 768, seed=18)
    assert plan == plan_epoch(of_lengths(LENGTHS), 768, seed=17)
    assert {frozenset(batch) for batch in plan} != {frozenset(batch) for batch in other}


def test_packing_fills_batches_with_mails_of_any_length_and_leaves_none_out() -> None:
    packed = plan_epoch(of_lengths(LENGTHS), 768, seed=17, packing=True)
    alike = plan_epoch(of_lengths(LENGTHS), 768, seed=17)

    def spread(batches: list[list[int]]) -> float:
        lengths = [[LENGTHS[index] for index in batch] for batch in batches]
        return sum(max(batch) - min(batch) for batch in lengths) / len(lengths)

    assert sorted(index for batch in packed for index in batch) == list(range(len(LENGTHS)))
    assert all(sum(LENGTHS[index] for index in batch) <= 768 for batch in packed)
    assert spread(packed) > 3 * spread(alike)
    assert packed == plan_epoch(of_lengths(LENGTHS), 768, seed=17, packing=True)


def test_nothing_makes_no_batches() -> None:
    assert plan_epoch([], 768, seed=17) == []


# ---- validation slice ------------------------------------------------------------------------------


def in_threads(threads: list[str]) -> list[EncodedExample]:
    return [EncodedExample(f"m{n}", thread, (1, 2, 3), 1) for n, thread in enumerate(threads)]


def ids(examples: tuple[EncodedExample, ...]) -> list[str]:
    return [e.id for e in examples]


@pytest.mark.parametrize(("count", "expected"), [(48, 12), (60, 12), (120, 12), (200, 20), (500, 50)])
def test_a_tenth_is_set_aside_all_along_the_time_and_at_least_twelve_mails(count: int, expected: int) -> None:
    examples = in_threads([f"t{n}" for n in range(count)])
    split = split_validation(examples, TrainConfig())
    places = [int(example.id[1:]) for example in split.validation]
    stride = count / expected
    assert places == sorted(places) and len(places) == expected
    assert all(abs(place - (n + 0.5) * stride) <= 1 for n, place in enumerate(places))
    assert len(split.train) == count - expected and split.reason == ""
    assert examples[-1] in split.train, "the newest mail is worth most in training"


def test_long_threads_come_into_the_slice_as_often_as_their_mails() -> None:
    chance = random.Random(1)
    conversations = [f"t{n // 40}-{chance.randrange(10)}" for n in range(400)]  # of about four mails
    examples = in_threads([t if chance.random() < 0.5 else f"s{n}" for n, t in enumerate(conversations)])
    split = split_validation(examples, TrainConfig())
    in_long = sum(example.thread_id.startswith("t") for example in split.validation)
    assert 40 <= len(split.validation) <= 43 and 12 <= in_long <= 32


@pytest.mark.parametrize("count", [0, 1, 12, 47])
def test_too_few_examples_are_all_trained_on_and_the_reason_says_so(count: int) -> None:
    split = split_validation(in_threads([f"t{n}" for n in range(count)]), TrainConfig())
    assert (len(split.train), split.validation) == (count, ())
    assert f"{count} examples allow at most {count // 4} validation mails" in split.reason
    assert "min_validation 12" in split.reason


def test_a_fraction_of_zero_trains_on_everything() -> None:
    split = split_validation(in_threads(["t"] * 100), TrainConfig(validation_fraction=0))
    assert (len(split.train), split.reason) == (100, "validation_fraction is 0")


@pytest.mark.parametrize("seed", range(20))
def test_no_thread_is_cut_and_never_more_than_a_quarter_is_set_aside(seed: int) -> None:
    chance = random.Random(seed)
    examples = in_threads([f"t{chance.randrange(40)}" for _ in range(chance.randrange(20, 300))])
    split = split_validation(examples, TrainConfig(min_validation=5))
    assert not {e.thread_id for e in split.train} & {e.thread_id for e in split.validation}
    assert sorted(ids(split.train) + ids(split.validation)) == sorted(ids(tuple(examples)))
    assert 5 <= len(split.validation) <= len(examples) // 4 or (not split.validation and split.reason)
    assert split == split_validation(list(examples), TrainConfig(min_validation=5, seed=99))


def test_a_thread_too_long_for_a_quarter_stays_in_training_and_the_next_one_is_taken() -> None:
    examples = in_threads([f"t{n}" for n in range(60)] + ["long"] * 30 + [f"u{n}" for n in range(20)])
    split = split_validation(examples, TrainConfig())
    assert len(split.validation) == 12
    assert not any(example.thread_id == "long" for example in split.validation)


def test_a_mailbox_of_one_thread_has_no_validation_slice_and_the_reason_says_so() -> None:
    split = split_validation(in_threads(["t"] * 200), TrainConfig())
    assert (len(split.train), split.validation) == (200, ())
    assert "whole ones make 0 validation mails" in split.reason


def test_the_slice_is_looked_at_before_the_first_step_and_after_every_epoch() -> None:
    assert looks_of([[0] * 10, [0] * 11, [0] * 9], 30) == {0, 10, 21, 30}


def test_a_long_epoch_is_looked_at_half_way_too() -> None:
    long, short = [0] * (LONG_EPOCH_STEPS + 2), [0] * LONG_EPOCH_STEPS
    assert looks_of([long, short], 82) == {0, 21, 42, 82}


def test_a_run_cut_by_max_steps_is_looked_at_when_it_ends() -> None:
    assert looks_of([[0] * 10, [0] * 10], 13) == {0, 10, 13}


def test_what_was_trained_on_is_what_the_steps_until_then_saw() -> None:
    examples = [EncodedExample(f"m{n}", f"t{n}", tuple(range(50)), 1) for n in range(100)]
    config = TrainConfig(batch_tokens=200, epochs=2)
    split = split_validation(examples, config)
    steps = len(plan_epochs(split.train, config)[0])
    assert split.validation and steps > 10
    first = trained_on(examples, config, 3)
    assert len(first) == 12 and set(first) < set(split.train)
    assert first == tuple(e for e in split.train if e in set(first)), "in the order of time"
    # A whole epoch saw every mail; so did, before it, whoever starts from an adapter and keeps it (step 0).
    for kept in (steps, steps + 3, 0):
        assert trained_on(examples, config, kept) == split.train


# ---- learning rate ---------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_rate_rises_then_never_rises_again_and_never_ends_at_zero(schedule: str) -> None:
    config = TrainConfig.model_validate({"schedule": schedule, "warmup_fraction": 0.1})
    rates = [rate_factor(step, 100, config) for step in range(100)]
    assert rates[:10] == sorted(rates[:10]) and 0 < rates[0] < rates[9] < 1
    assert rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] > 0


def test_half_way_down() -> None:
    for schedule, expected in (("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)):
        config = TrainConfig.model_validate({"schedule": schedule, "warmup_fraction": 0})
        assert rate_factor(50, 100, config) == pytest.approx(expected)
    config = TrainConfig(schedule="cosine", warmup_fraction=0)
    assert rate_factor(25, 100, config) == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert rate_factor(0, 10, TrainConfig(warmup_fraction=0)) == 1


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_a_very_short_run_still_moves(steps: int) -> None:
    assert all(rate_factor(step, steps, TrainConfig()) > 0 for step in range(steps))


# ---- divergence ------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_a_number_stops_at_its_step(loss: float) -> None:
    with pytest.raises(TrainingDiverged, match="at step 3") as stop:
        stop_if_diverged([3.0, 2.9, loss])
    assert stop.value.step == 3


def test_an_exploding_loss_stops_with_both_means() -> None:
    with pytest.raises(TrainingDiverged, match=r"from 3\.00 to 5\.50 nat per token by step 9"):
        stop_if_diverged([3.0] * 4 + [4.0] + [5.5] * 4)


def test_one_bad_batch_and_a_slow_start_are_no_divergence() -> None:
    stop_if_diverged([3.0] * 7 + [3.0 + 3.9 * EXPLODED])
    stop_if_diverged([3.0, 9.0])
    stop_if_diverged([3.0] * 4 + [3.0 + EXPLODED] * 4)


def test_a_loss_that_never_fell_is_refused_at_the_end() -> None:
    with pytest.raises(TrainingDiverged, match=r"3\.00 nat per token at the start, 3\.00 at the end of 20"):
        stop_if_flat([3.0] * 20)
    stop_if_flat([3.0] * 10 + [2.99] * 10)
    stop_if_flat([3.0] * 19)


def test_a_validation_loss_that_is_no_number_or_explodes_stops_with_both_losses() -> None:
    with pytest.raises(TrainingDiverged, match=r"validation loss went from 3\.00 to nan .* by step 9"):
        stop_if_validation_diverged([(0, 3.0), (9, math.nan)], [3.0])
    with pytest.raises(TrainingDiverged, match=r"from 3\.00 to 5\.50 nat per token by step 9"):
        stop_if_validation_diverged([(0, 3.0), (9, 5.5)], [3.0])
    stop_if_validation_diverged([(0, 3.0), (9, 3.0 + EXPLODED)], [3.0])


def test_a_validation_loss_that_never_fell_is_refused_at_the_end() -> None:
    with pytest.raises(TrainingDiverged, match=r"3\.000 nat per token before training, at best 2\.996 in 2"):
        stop_if_useless([(0, 3.0), (1, 2.996), (2, 3.1)], [3.0, 2.9], 0.005)
    stop_if_useless([(0, 3.0), (1, 2.99), (2, 3.1)], [3.0, 2.9], 0.005)


def test_weights_broken_by_the_last_step_are_refused() -> None:
    import torch

    stop_if_broken(torch.zeros(3), [3.0])
    with pytest.raises(TrainingDiverged, match="step 2, the last one") as stop:
        stop_if_broken(torch.tensor([0.0, math.nan]), [3.0, 2.9])
    assert (stop.value.step, stop.value.loss) == (2, 2.9)


# ---- what a checkpoint must match ------------------------------------------------------------------


def test_a_fingerprint_changes_with_base_recipe_and_examples_and_with_nothing_else() -> None:
    config, examples, base = TrainConfig(), of_lengths([3, 4]), tiny_base_model()
    same = TrainConfig(name="renamed", checkpoint_every_s=1, checkpoint_every_steps=5)
    reference = fingerprint(config, examples, base)
    assert fingerprint(same, examples, base) == reference
    for other in (
        fingerprint(TrainConfig(learning_rate=2e-3), examples, base),
        fingerprint(config, of_lengths([3, 5]), base),
        fingerprint(config, [EncodedExample("m0", "t", (0, 1, 2), 2), examples[1]], base),
        fingerprint(config, examples, tiny_base_model(id="another")),
    ):
        assert other != reference
