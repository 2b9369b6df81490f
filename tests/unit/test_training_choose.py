"""Hyper-parameters chosen from the mail: each rule, what is left alone, and that a choice stays."""

from __future__ import annotations

import pytest

from training.choose import choose, choose_epochs, count_tokens, go_on_in_shape
from training.config import TrainConfig, load_train_config, parse_train_config
from training.schemas import Example

DEFAULT = load_train_config("default")
PROMPT = "Write an email about the garden."


def mailbox(mails: int, *, words: int = 40, threads: int | None = None) -> list[Example]:
    """Return mails of `words` five-letter words, each its own thread unless `threads` says how many."""
    return [
        Example(
            id=f"m{n}",
            thread_id=f"t{n % threads if threads else n}",
            instruction=PROMPT,
            output="weeds " * words,
        )
        for n in range(mails)
    ]


def preset(text: dict[str, object]) -> TrainConfig:
    return parse_train_config(text)


@pytest.mark.parametrize(("steps", "epochs"), [(0, 3), (4, 3), (12, 3), (14, 3), (15, 2), (300, 2)])
def test_the_shorter_an_epoch_the_more_of_them_are_allowed(steps: float, epochs: int) -> None:
    assert choose_epochs(steps) == epochs


def test_fewer_tokens_get_more_passes_and_more_dropout() -> None:
    few, many = choose(DEFAULT, mailbox(60)).config, choose(DEFAULT, mailbox(300)).config
    assert (few.epochs, few.lora.dropout) == (3, 0.1)
    assert (many.epochs, many.lora.dropout) == (2, 0.05)


def test_it_is_tokens_that_count_and_not_mails() -> None:
    assert choose(DEFAULT, mailbox(80, words=150)).config.epochs == 2


def test_mail_that_is_set_aside_makes_no_steps() -> None:
    examples = mailbox(96, words=48)
    watched = choose(preset({"epochs": "auto", "validation_fraction": 0.25}), examples).config
    unwatched = choose(preset({"epochs": "auto", "validation_fraction": 0}), examples).config
    assert watched.epochs > unwatched.epochs


def test_without_an_early_stop_the_rate_is_halved() -> None:
    assert choose(DEFAULT, mailbox(48)).config.learning_rate == 1e-3
    assert choose(DEFAULT, mailbox(47)).config.learning_rate == 5e-4


def test_a_mailbox_of_one_thread_has_no_early_stop_either() -> None:
    chosen = choose(DEFAULT, mailbox(200, threads=1))
    assert chosen.config.learning_rate == 5e-4
    assert "no early stop (the threads are too long" in chosen.reason


@pytest.mark.parametrize(("mails", "fraction"), [(100, 0.1), (400, 0.1), (800, 0.05)])
def test_a_tenth_is_watched_and_at_most_forty_mails(mails: int, fraction: float) -> None:
    assert choose(DEFAULT, mailbox(mails)).config.validation_fraction == fraction


def test_alpha_is_twice_the_rank_whichever_of_them_is_chosen() -> None:
    both = choose(DEFAULT, mailbox(100)).config.lora
    assert (both.rank, both.alpha) == (16, 32)
    assert choose(preset({"lora": {"rank": 8, "alpha": "auto"}}), mailbox(100)).config.lora.alpha == 16


def test_numbers_of_the_preset_stay_as_they_are() -> None:
    mine = preset(
        {"epochs": "auto", "learning_rate": 3e-4, "lora": {"rank": "auto", "alpha": 64, "dropout": 0}}
    )
    config = choose(mine, mailbox(30)).config
    assert (config.learning_rate, config.lora.alpha, config.lora.dropout) == (3e-4, 64, 0)
    assert config.validation_fraction == mine.validation_fraction
    assert config.chosen is not None and config.chosen.fields == ("epochs", "lora.rank")


@pytest.mark.parametrize("name", ["seeds", "llama-3.1-8b", "cpu-smoke"])
def test_a_preset_of_numbers_is_not_touched(name: str) -> None:
    config = load_train_config(name)
    chosen = choose(config, mailbox(40))
    assert chosen.config is config and chosen.reason == ""


def test_the_reason_gives_the_values_and_the_counts() -> None:
    examples = mailbox(141, words=50)
    reason = choose(DEFAULT, examples).reason
    assert reason.startswith(
        "Chosen from the mail: epochs at most 2, learning rate 0.001, rank 16, alpha 32, dropout 0.05, "
        "early stop by 14 mails kept aside; because 141 training mails of about "
    )
    assert f"{count_tokens(examples, DEFAULT):,} tokens" in reason and reason.endswith("steps an epoch.")


def test_the_reason_is_silent_about_what_the_preset_says() -> None:
    reason = choose(preset({"epochs": "auto"}), mailbox(100)).reason
    assert "epochs at most" in reason
    assert not any(word in reason for word in ("rate", "rank", "alpha", "dropout", "early stop"))


def test_a_choice_is_made_once_and_outlives_storing() -> None:
    first = choose(DEFAULT, mailbox(80))
    stored = parse_train_config(first.config.model_dump(mode="json"))
    assert stored == first.config and stored.auto == ()
    assert choose(stored, mailbox(500)) == first


def test_no_mail_at_all_is_no_error() -> None:
    assert choose(DEFAULT, []).config.auto == ()


def test_a_training_that_goes_on_has_the_shape_of_its_start() -> None:
    config = go_on_in_shape(DEFAULT, 8, 24.0)
    assert (config.lora.rank, config.lora.alpha) == (8, 24)
    assert "lora.rank" not in config.auto and "epochs" in config.auto
    chosen = choose(config, mailbox(100)).config
    assert (chosen.lora.rank, chosen.lora.alpha) == (8, 24)


def test_a_shape_that_the_preset_gives_is_kept_whatever_it_goes_on_from() -> None:
    seeds = load_train_config("seeds")
    assert go_on_in_shape(seeds, 8, 16.0) == seeds
    assert go_on_in_shape(DEFAULT, None, None) == DEFAULT
