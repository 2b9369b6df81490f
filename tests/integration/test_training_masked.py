"""Third persons are left out of the loss: a masked name is not learnt, and the words around it are."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bases import VOCABULARY, tiny_base, tiny_base_model, tiny_examples
from training.checkpoint import fingerprint
from training.config import LoraConfig, TrainConfig
from training.dataset import EncodedExample
from training.evaluate import held_out_losses
from training.forward import reply_hidden_states
from training.loaded_base import LoadedBase
from training.lora import train_adapter
from training.loss import reply_log_likelihood

NAME = 67
"""The third of the four tokens that every reply of `tiny_examples` repeats."""
CONFIG = TrainConfig(
    precision="fp32",
    epochs=6,
    batch_tokens=64,
    learning_rate=2e-2,
    validation_fraction=0,
    lora=LoraConfig(rank=4, alpha=8, dropout=0),
)


def with_name_masked(examples: list[EncodedExample]) -> list[EncodedExample]:
    return [
        replace(
            e, masked=tuple(n for n in range(e.prompt_length, len(e.input_ids)) if e.input_ids[n] == NAME)
        )
        for e in examples
    ]


def trained(examples: list[EncodedExample], out: Path) -> tuple[float, float, float]:
    """Return what was learnt: mean nll of the name, of the other tokens, and the held-out loss of all."""
    base: LoadedBase = tiny_base()
    found: list[float] = []

    def measure(model: Any) -> None:
        plain = tiny_examples()
        with torch.no_grad():
            hidden, targets, _ = reply_hidden_states(model, base, plain)
            weight = base.model.get_output_embeddings().weight
            nll = -reply_log_likelihood(hidden, weight, targets)
        losses = held_out_losses(model, base, with_name_masked(plain), 512)
        total = sum(loss.nll * loss.tokens for loss in losses) / sum(loss.tokens for loss in losses)
        found.extend((float(nll[targets == NAME].mean()), float(nll[targets != NAME].mean()), total))

    train_adapter(CONFIG, examples, base, out, after_training=measure)
    return found[0], found[1], found[2]


def test_a_masked_name_is_not_learnt_and_the_words_around_it_are(tmp_path: Path) -> None:
    name, others, _ = trained(tiny_examples(), tmp_path / "plain")
    masked_name, masked_others, _ = trained(with_name_masked(tiny_examples()), tmp_path / "masked")
    guess = math.log(VOCABULARY)  # what a model that knows nothing needs for a token
    assert max(name, others, masked_others) < guess - 0.3 < guess < masked_name
    assert masked_others == pytest.approx(others, abs=0.1)


def test_held_out_loss_counts_every_token_masked_or_not(tmp_path: Path) -> None:
    name, others, total = trained(with_name_masked(tiny_examples()), tmp_path)
    assert total == pytest.approx(0.25 * name + 0.75 * others, rel=1e-3)


def test_a_reply_that_is_all_masked_is_trained_over_without_harm(tmp_path: Path) -> None:
    examples = [
        replace(e, masked=tuple(range(e.prompt_length, len(e.input_ids)))) for e in tiny_examples()[:3]
    ]
    result = train_adapter(CONFIG, [*examples, *tiny_examples()[3:]], tiny_base(), tmp_path)
    assert all(0 <= loss < 20 for _, loss in result.loss_curve)


def test_a_checkpoint_of_other_masks_is_not_resumed() -> None:
    examples, base = tiny_examples(), tiny_base_model()
    assert fingerprint(CONFIG, examples, base) != fingerprint(CONFIG, with_name_masked(examples), base)
