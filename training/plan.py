"""What is trained on at which step, and at which rate: decided before the first step, from the seed."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from training.config import TrainConfig
from training.dataset import EncodedExample

LONG_EPOCH_STEPS = 40
"""Steps above which an epoch is looked at half-way too (about 320 mails at the default budget). At the
default rate the best of three real mailboxes lay at the second or third epoch's end, and the next look was
worse by up to 0.05 nat: the longer an epoch, the more is lost by waiting for its end. A look after fewer
than 20 new steps would mostly measure which batches came last."""


@dataclass(frozen=True)
class ValidationSplit:
    """The examples that are trained on, and those that only say when to stop; both in their order."""

    train: tuple[EncodedExample, ...]
    validation: tuple[EncodedExample, ...]
    reason: str
    """Why there is no validation slice; empty when there is one."""


def threads_to_watch(threads: Sequence[str], config: TrainConfig) -> tuple[frozenset[str], str]:
    """Return threads, whole, that make `validation_fraction` of the examples; or none, and why.

    `threads` holds the thread of every example, in time order. They are spread evenly over the time: each is
    the thread of the next mail when the slice has fallen half a mail behind its share so far. (The newest
    mails are nearest to what the person will write next, and better trained on: docs/quality.md, "What is
    watched".) A thread that would take more than a quarter of the examples out stays in training.
    """
    if not config.validation_fraction:
        return frozenset(), "validation_fraction is 0"
    most = len(threads) // 4
    too_few = (
        f"{len(threads)} examples allow at most {most} validation mails (a quarter), fewer than "
        f"min_validation {config.min_validation}"
    )
    if most < config.min_validation:
        return frozenset(), too_few
    wanted = min(max(config.min_validation, round(len(threads) * config.validation_fraction)), most)
    out: set[str] = set()
    count = 0
    sizes = Counter(threads)
    for place, thread in enumerate(threads, start=1):
        behind = wanted * place / len(threads) - count
        if behind >= 0.5 and thread not in out and count + sizes[thread] <= most:
            out.add(thread)
            count += sizes[thread]
    if count < config.min_validation:
        reason = (
            f"the threads are too long: whole ones make {count} validation mails, not {config.min_validation}"
        )
        return frozenset(), reason
    return frozenset(out), ""


def split_validation(examples: Sequence[EncodedExample], config: TrainConfig) -> ValidationSplit:
    """Set the threads of `threads_to_watch` aside. `examples` must be in time order.

    A pure function of its arguments: a run that is resumed stops where the uninterrupted one does.
    """
    out, reason = threads_to_watch([example.thread_id for example in examples], config)
    return ValidationSplit(
        tuple(e for e in examples if e.thread_id not in out),
        tuple(e for e in examples if e.thread_id in out),
        reason,
    )


def looks_of(epochs: Sequence[Sequence[object]], steps: int) -> frozenset[int]:
    """Return after how many steps the validation slice is looked at: 0, every epoch's end and half-way
    through a long one, and the last step. `epochs` holds each epoch's batches."""
    looks = {0, steps}
    done = 0
    for batches in epochs:
        if len(batches) > LONG_EPOCH_STEPS:
            looks.add(done + len(batches) // 2)
        done += len(batches)
        looks.add(done)
    return frozenset(look for look in looks if look <= steps)


def plan_epoch(
    examples: Sequence[EncodedExample], batch_tokens: int, seed: int, *, packing: bool = False
) -> list[list[int]]:
    """Return batches of example indices: similar lengths together, at most `batch_tokens` of mail.

    Padding does not count: rows lie ragged, and only attention lays them side by side, where similar lengths
    save work. Lengths are jittered by up to 10 % before sorting, so that each epoch mixes differently; the
    order of the batches is shuffled. `packing` fills batches in a random order instead, so that long and
    short mails meet in one step. A single example longer than the budget is a batch of its own.
    """
    chance = random.Random(seed)
    order = list(range(len(examples)))
    if packing:
        chance.shuffle(order)
    else:
        order.sort(key=lambda i: len(examples[i].input_ids) * (1 + 0.1 * chance.random()))
    batches: list[list[int]] = []
    room = 0
    for index in order:
        length = len(examples[index].input_ids)
        if not batches or length > room:
            batches.append([])
            room = batch_tokens
        batches[-1].append(index)
        room -= length
    chance.shuffle(batches)
    return batches


def plan_epochs(examples: Sequence[EncodedExample], config: TrainConfig) -> list[list[list[int]]]:
    """Return each epoch's batches of the examples that are trained on; `max_steps` may end them sooner."""
    return [
        plan_epoch(examples, config.batch_tokens, config.seed + epoch, packing=config.packing)
        for epoch in range(config.epochs)
    ]


def trained_on(
    examples: Sequence[EncodedExample], config: TrainConfig, steps: int
) -> tuple[EncodedExample, ...]:
    """Return those of a training's examples that its first `steps` steps saw, in their order.

    `steps` 0 (the weights that a retrain began with were kept): all that it was to be trained on.
    """
    train = split_validation(examples, config).train
    plan = [batch for epoch in plan_epochs(train, config) for batch in epoch]
    seen = {index for batch in plan[: steps or None] for index in batch}
    return tuple(example for index, example in enumerate(train) if index in seen)


def rate_factor(step: int, steps: int, config: TrainConfig) -> float:
    """Return the share of the peak learning rate at `step` (from 0): linear warm-up, then the schedule."""
    warmup = max(1, round(steps * config.warmup_fraction)) if config.warmup_fraction else 0
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    if config.schedule == "linear":
        return 1 - done
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0
