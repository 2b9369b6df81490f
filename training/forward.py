"""From examples to the hidden states that predict their replies.

On CPU the examples of a step lie ragged in one row, and what all their prompts begin with (system message
and the instruction's first words, a third of the tokens of short mails) is computed once: exact, because a
token's state depends on what precedes it alone. On CUDA they are padded rows for the fused kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from training import attention, cuda_attention
from training.attention import RowLayout
from training.dataset import EncodedExample
from training.loaded_base import LoadedBase

if TYPE_CHECKING:
    from peft import PeftModel


def reply_hidden_states(
    model: PeftModel, base: LoadedBase, batch: Sequence[EncodedExample], *, with_masked: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the decoder and return, per reply token, the hidden state that predicts it `(tokens, width)`,
    the token `(tokens,)` and its row in the batch `(tokens,)`.

    `with_masked=False` leaves out the reply tokens that are no training target (third persons).
    """
    wanted = [_targets(example, with_masked) for example in batch]
    lay = _LAYOUTS.get(base.model.config._attn_implementation, pad)
    inputs, starts = lay(batch, base)
    hidden = model.get_base_model().get_decoder()(**inputs, use_cache=False).last_hidden_state
    # A token is predicted by the state of the one before it.
    predictors = [start + n - 1 for start, numbers in zip(starts, wanted, strict=True) for n in numbers]
    targets = [e.input_ids[n] for e, numbers in zip(batch, wanted, strict=True) for n in numbers]
    rows = [row for row, numbers in enumerate(wanted) for _ in numbers]
    return (
        hidden.flatten(0, 1).index_select(0, _send(predictors, hidden.device)),
        _send(targets, hidden.device),
        torch.tensor(rows),
    )


def _targets(example: EncodedExample, with_masked: bool) -> list[int]:
    """Return which of an example's tokens are predicted, counted from its start."""
    masked = frozenset() if with_masked else frozenset(example.masked)
    return [n for n in range(example.prompt_length, len(example.input_ids)) if n not in masked]


def lay_ragged(batch: Sequence[EncodedExample], base: LoadedBase) -> tuple[dict[str, Any], list[int]]:
    """Return the decoder's inputs, ids `(1, tokens)`, and where in them each example would start were its
    prefix not shared."""
    prefix = shared_prefix(batch)
    ids = list(batch[0].input_ids[:prefix])
    starts = []
    for example in batch:
        starts.append(len(ids) - prefix)
        ids += example.input_ids[prefix:]
    shape = base.model.config
    layout = RowLayout.of(
        prefix,
        [len(example.input_ids) - prefix for example in batch],
        shape.num_attention_heads,
        shape.num_key_value_heads,
        base.model.dtype,
        base.device,
    )
    inputs = {
        "input_ids": _send([ids], base.device),
        "position_ids": layout.positions[None],
        "layout": layout,
    }
    return inputs, starts


def pad(batch: Sequence[EncodedExample], base: LoadedBase) -> tuple[dict[str, Any], list[int]]:
    """Return the decoder's inputs, ids `(rows, longest)` padded on the right, and where each row starts in
    them. No mask: the causal one keeps every real token from seeing padding."""
    longest = max(len(example.input_ids) for example in batch)
    ids = torch.zeros((len(batch), longest), dtype=torch.long)
    for row, example in enumerate(batch):
        ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
    return {"input_ids": _send(ids, base.device)}, [row * longest for row in range(len(batch))]


def pack(batch: Sequence[EncodedExample], base: LoadedBase) -> tuple[dict[str, Any], list[int]]:
    """Return the decoder's inputs, ids `(1, tokens)` of all rows one behind another and where each begins,
    and the same bounds as numbers."""
    lengths = [len(example.input_ids) for example in batch]
    bounds = [0, *accumulate(lengths)]
    inputs = {
        "input_ids": _send([[token for example in batch for token in example.input_ids]], base.device),
        "position_ids": _send([[place for length in lengths for place in range(length)]], base.device),
        "row_bounds": _send(bounds, base.device).int(),
        "longest_row": max(lengths),
    }
    return inputs, bounds[:-1]


_LAYOUTS = {attention.NAME: lay_ragged, cuda_attention.VARLEN: pack}


def _send(values: list[int] | list[list[int]] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Bring whole numbers to a device without waiting for it: only copies from pinned memory do not wait."""
    numbers = torch.as_tensor(values, dtype=torch.long)
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers


def shared_prefix(batch: Sequence[EncodedExample]) -> int:
    """Return how many tokens all prompts of a step begin with, 0 for a step of one example.

    It ends one token before the shortest prompt does: the last token of a prompt predicts its reply's first,
    so each row keeps its own.
    """
    if len(batch) < 2:
        return 0
    length = min(example.prompt_length for example in batch) - 1
    first = batch[0].input_ids
    for example in batch[1:]:
        length = next((n for n in range(length) if example.input_ids[n] != first[n]), length)
    return length
