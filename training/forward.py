"""From examples to the hidden states that predict their replies: rows for the decoder and their targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from training.dataset import EncodedExample
from training.loaded_base import LoadedBase

if TYPE_CHECKING:
    from peft import PeftModel


def pad_batch(
    batch: Sequence[EncodedExample], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids `(rows, longest)` padded on the right, and, for every reply token, the row and column of
    the position that predicts it and the token itself, each `(reply tokens,)`."""
    longest = max(len(example.input_ids) for example in batch)
    ids = torch.zeros((len(batch), longest), dtype=torch.long)
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for row, example in enumerate(batch):
        length = len(example.input_ids)
        ids[row, :length] = torch.tensor(example.input_ids)
        rows += [row] * example.reply_length
        columns += range(example.prompt_length - 1, length - 1)
        targets += example.input_ids[example.prompt_length :]
    return ids.to(device), torch.tensor(rows), torch.tensor(columns), torch.tensor(targets, device=device)


def reply_hidden_states(
    model: PeftModel, base: LoadedBase, batch: Sequence[EncodedExample]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the decoder and return, per reply token, the hidden state that predicts it `(tokens, width)`,
    the token `(tokens,)` and its row in the batch `(tokens,)`."""
    ids, rows, columns, targets = pad_batch(batch, base.device)
    decoder = model.get_base_model().get_decoder()
    hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state
    return hidden[rows.to(hidden.device), columns.to(hidden.device)], targets.to(hidden.device), rows
