"""What training will take, before it starts: tokens, seconds, dollars."""

from __future__ import annotations

from collections.abc import Sequence

from training.config import TrainConfig
from training.schemas import Estimate, Example

CHARACTERS_PER_TOKEN = 4.0
"""English prose under a 49k byte-pair vocabulary: 4.0–4.4 characters a token on the public mailboxes."""
TEMPLATE_TOKENS = 36
"""System message and chat markup that every prompt carries."""
FIXED_SECONDS = 25.0
"""Start of the flow run, imports, base load, held-out losses and export (measured on 2 CPU cores)."""


def estimate_training(
    examples: Sequence[Example], config: TrainConfig, tokens_per_second: float, hourly_price: float
) -> Estimate:
    """Estimate one training of `examples` at a device's measured rate (prompt + reply tokens a second)."""
    per_epoch = sum(
        min(
            TEMPLATE_TOKENS + (len(e.instruction) + len(e.input) + len(e.output)) / CHARACTERS_PER_TOKEN,
            config.max_seq_tokens,  # what exceeds it is cut before training
        )
        for e in examples
    )
    tokens = per_epoch * config.epochs
    if config.max_steps is not None:
        tokens = min(tokens, config.max_steps * config.batch_tokens)
    seconds = FIXED_SECONDS + tokens / tokens_per_second
    return Estimate(
        seconds=round(seconds, 1),
        tokens=round(tokens),
        cost=round(seconds / 3600 * hourly_price, 4),
        tokens_per_second=round(tokens_per_second, 1),
    )
