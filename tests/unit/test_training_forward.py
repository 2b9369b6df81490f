"""Laying the examples of a step out: what is shared, what predicts what, and what is no target."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.bases import tiny_base
from training.dataset import EncodedExample
from training.forward import lay_ragged, pad, reply_hidden_states, shared_prefix
from training.loaded_base import LoadedBase


def example(*ids: int, prompt: int, masked: tuple[int, ...] = ()) -> EncodedExample:
    return EncodedExample("m", "t", ids, prompt, masked)


SHARING = (example(1, 2, 3, 4, 5, 6, prompt=4), example(1, 2, 3, 7, 8, prompt=4, masked=(4,)))


class Bare:
    """The base as a PEFT model without an adapter."""

    def __init__(self, base: LoadedBase) -> None:
        self.base = base

    def get_base_model(self) -> Any:
        return self.base.model


@pytest.mark.parametrize(
    ("batch", "length"),
    [
        (SHARING, 3),
        ((SHARING[0],), 0),
        ((example(1, 2, 9, prompt=2), example(1, 2, 9, prompt=2)), 1),
        ((example(5, 1, prompt=1), example(6, 1, prompt=1)), 0),
        ((example(1, 2, 3, 9, prompt=3), example(1, 9, prompt=1)), 0),
    ],
    ids=["three of four", "one example", "not the last of a prompt", "nothing in common", "prompt of one"],
)
def test_what_all_prompts_begin_with_is_shared(batch: tuple[EncodedExample, ...], length: int) -> None:
    assert shared_prefix(batch) == length


def test_ragged_rows_hold_the_prefix_once_and_no_padding() -> None:
    inputs, starts = lay_ragged(SHARING, tiny_base())
    assert inputs["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 3, 4]]
    # Where an example would start if the prefix stood before its own tokens.
    assert starts == [0, 3]


def test_padding_is_on_the_right() -> None:
    inputs, starts = pad(SHARING, tiny_base())
    assert inputs["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6], [1, 2, 3, 7, 8, 0]]
    assert starts == [0, 6]


def test_ragged_and_padded_rows_give_the_same_states() -> None:
    base = tiny_base()
    model: Any = Bare(base)
    hidden, targets, rows = reply_hidden_states(model, base, SHARING)
    base.model.set_attn_implementation("eager")
    padded, padded_targets, padded_rows = reply_hidden_states(model, base, SHARING)
    assert targets.tolist() == padded_targets.tolist() == [5, 6, 8]
    assert rows.tolist() == padded_rows.tolist() == [0, 0, 1]
    torch.testing.assert_close(hidden, padded, rtol=1e-4, atol=1e-5)


def test_masked_tokens_are_read_but_no_target() -> None:
    base = tiny_base()
    model: Any = Bare(base)
    every, _, _ = reply_hidden_states(model, base, SHARING)
    hidden, targets, rows = reply_hidden_states(model, base, SHARING, with_masked=False)
    assert targets.tolist() == [5, 6]
    assert rows.tolist() == [0, 0]
    assert torch.equal(hidden, every[:2])
