"""What is trained on at which step, and at which rate: decided before the first step, from the seed."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from training.config import TrainConfig
from training.dataset import EncodedExample


def plan_epoch(examples: Sequence[EncodedExample], batch_tokens: int, seed: int) -> list[list[int]]:
    """Return batches of example indices: similar lengths together, at most `batch_tokens` with padding.

    Lengths are jittered by up to 10 % before sorting, so that each epoch mixes differently; the order of
    the batches is shuffled. A single example longer than the budget is a batch of its own.
    """
    chance = random.Random(seed)
    order = sorted(
        range(len(examples)), key=lambda i: len(examples[i].input_ids) * (1 + 0.1 * chance.random())
    )
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        length = len(examples[index].input_ids)
        longest = max(longest, length)
        if batches and longest * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = length
    chance.shuffle(batches)
    return batches


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
