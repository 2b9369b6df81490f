"""Hyper-parameters that a preset leaves to the data (`auto`), chosen from the training mails alone.

Held-out mails have no part in it: what is chosen by them could no longer be proved on them. The rules rest
on a few runs of one small base model (docs/quality.md, "Chosen from the data"), so they move little and only
in the direction in which the evidence points. They are provisional until `python -m tests.benchmarks.quality
--only sizes` is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.config import AutoField, Choice, TrainConfig, parse_train_config
from training.estimate import CHARACTERS_PER_TOKEN, TEMPLATE_TOKENS, characters_of
from training.plan import threads_to_watch
from training.schemas import Example

MIN_EPOCHS = 2
"""Planned as two, with the whole decay in them, two epochs predict held-out mail at least as well as the best
look of a plan of three, and are farther from learning single mails by heart (docs/quality.md, "Epochs that
are planned")."""
MAX_EPOCHS = 3
"""40 mails of one person were learnt worse in six epochs than in three (a gain of 0.76 against 0.82 nat on
held-out mail) and by heart (overfit gap 0.86 against 0.26, membership 0.99 against 0.83; one run each). Panza
goes to 11 at 75 mails, at a hundredth of our learning rate, for a training perplexity close to memorising."""
PLANNED_STEPS = 36
"""Optimiser steps that a plan should have. The best looks of the three smallest mailboxes measured came after
36, 36 and 40 steps, and the linear decay should end there."""
RATE = 1e-3
"""Of 5e-4, 1e-3 and 2e-3 the lowest validation loss on three mailboxes, where an early stop ends training."""
RATE_UNWATCHED = 5e-4
"""Without an early stop 1e-3 runs past its best: validation loss +0.02 to +0.08 nat one look later on three
mailboxes. 5e-4 was at its best at the end of 3 epochs on two of them and 0.04 past it on the third, and level
with a stopped 1e-3 on held-out mail (-0.004 to +0.003)."""
RANK = 16
"""The owner's. Lower validation loss than rank 8 in four of four runs (by 0.015) and than rank 32 in two of
three (by 0.006): docs/quality.md."""
SCALE = 2.0
"""alpha / rank, the owner's 32 / 16."""
DROPOUT = 0.05
"""The owner's. 0 and 0.1 are level with it (within 0.001 nat of validation loss in the mean of six runs)."""
DROPOUT_MORE_PASSES = 0.1
"""Above MIN_EPOCHS: dropout is one of two cheap remedies against telling trained mail from other mail by its
loss (LoRA-Leak, arXiv 2507.18302). Between 0.05 and 0.1 no run could tell a difference in loss."""
WATCHED_SHARE = 0.1
MAX_WATCHED = 40
"""Mails. 39 show a difference of 0.10 nat when losses of paired mails scatter by 0.25 (n >= (2.49 s / d)^2);
more would only be missing from training."""


@dataclass(frozen=True)
class Chosen:
    """A configuration of numbers only, and how it came about."""

    config: TrainConfig
    reason: str
    """One sentence; empty when the preset left nothing to choose."""


def choose(config: TrainConfig, train: Sequence[Example]) -> Chosen:
    """Put numbers in the place of what `config.auto` lists, from the training examples, in time order.

    Numbers of the preset stay as they are, and so does what was chosen before: a retry trains the same. A
    pure function of its arguments. Raises ConfigError when the numbers do not fit together.
    """
    if not config.auto:
        return Chosen(config, config.chosen.reason if config.chosen else "")
    mails, tokens = len(train), count_tokens(train, config)
    chosen: dict[AutoField, float] = {}
    if "validation_fraction" in config.auto:
        chosen["validation_fraction"] = round(min(WATCHED_SHARE, MAX_WATCHED / max(1, mails)), 4)
    watching = config.model_copy(
        update={"validation_fraction": chosen.get("validation_fraction", config.validation_fraction)}
    )
    threads = [example.thread_id for example in train]
    aside, unwatched = threads_to_watch(threads, watching)
    watched = sum(thread in aside for thread in threads)
    steps = tokens * (mails - watched) / max(1, mails) / config.batch_tokens
    if "epochs" in config.auto:
        chosen["epochs"] = choose_epochs(steps)
    if "learning_rate" in config.auto:
        chosen["learning_rate"] = RATE_UNWATCHED if unwatched else RATE
    if "lora.rank" in config.auto:
        chosen["lora.rank"] = RANK
    if "lora.alpha" in config.auto:
        chosen["lora.alpha"] = SCALE * chosen.get("lora.rank", config.lora.rank)
    if "lora.dropout" in config.auto:
        passes = chosen.get("epochs", config.epochs)
        chosen["lora.dropout"] = DROPOUT_MORE_PASSES if passes > MIN_EPOCHS else DROPOUT
    reason = _sentence(chosen, mails, tokens, steps, watched, unwatched)
    return Chosen(_with_numbers(config, chosen, reason), reason)


def choose_epochs(steps: float) -> int:
    """Return the limit of epochs for epochs of `steps` optimiser steps: more passes where each is short."""
    return max(MIN_EPOCHS, min(MAX_EPOCHS, round(PLANNED_STEPS / max(1.0, steps))))


def count_tokens(examples: Sequence[Example], config: TrainConfig) -> int:
    """Return about how many tokens the examples have: from characters, as no base model is at hand here."""
    return round(len(examples) * TEMPLATE_TOKENS + characters_of(examples, config) / CHARACTERS_PER_TOKEN)


def go_on_in_shape(config: TrainConfig, rank: int | None, alpha: float | None) -> TrainConfig:
    """Return `config` with the rank and alpha of the adapter that training goes on from, where it left them
    to the data: another shape could not go on. None: not known, so nothing changes."""
    shape: dict[AutoField, float | None] = {"lora.rank": rank, "lora.alpha": alpha}
    known = {field: value for field, value in shape.items() if field in config.auto and value is not None}
    return _replace(config, known, auto=[field for field in config.auto if field not in known])


def _with_numbers(config: TrainConfig, chosen: dict[AutoField, float], reason: str) -> TrainConfig:
    choice = Choice(fields=config.auto, reason=reason)
    return _replace(config, chosen, auto=[], chosen=choice.model_dump(mode="json"))


def _replace(config: TrainConfig, numbers: dict[AutoField, float], **others: Any) -> TrainConfig:
    data = config.model_dump(mode="json") | others
    for field, value in numbers.items():
        section, _, name = field.rpartition(".")
        (data[section] if section else data)[name] = value
    return parse_train_config(data, source=f"the preset {config.name}")


def _sentence(
    chosen: dict[AutoField, float], mails: int, tokens: int, steps: float, watched: int, unwatched: str
) -> str:
    """Say what was chosen and from which counts, in the order in which a person asks."""
    words = {
        "epochs": "epochs at most {:.0f}",
        "learning_rate": "learning rate {:g}",
        "lora.rank": "rank {:.0f}",
        "lora.alpha": "alpha {:g}",
        "lora.dropout": "dropout {:g}",
    }
    parts = [form.format(chosen[field]) for field, form in words.items() if field in chosen]  # type: ignore[index]
    if "validation_fraction" in chosen or "learning_rate" in chosen:
        parts.append(
            f"early stop by {watched} mails kept aside" if watched else f"no early stop ({unwatched})"
        )
    because = f"because {mails} training mails of about {tokens:,} tokens make {steps:.0f} steps an epoch"
    return f"Chosen from the mail: {', '.join(parts)}; {because}."
