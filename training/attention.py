"""Attention for ragged rows, by plain matrix products, plugged into transformers' attention interface.

The rows of a step lie one behind another in a single row of tokens, so that every other layer computes no
padding; what they all begin with is there once. Only here are they laid side by side. On CPU the backward
pass of PyTorch's fused attention is the slow part at mail length: two batched matrix products and a softmax
took a third to a quarter of its time (references/training.md §1, rows of 48–384 tokens). On CUDA the fused
kernels win, and this module is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

NAME = "ownvoice_ragged"


def register() -> str:
    """Make the implementation known to transformers; returns the name for `attn_implementation`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, ragged_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    return NAME


@dataclass(frozen=True)
class RowLayout:
    """Where the rows of a step stand in its tokens `[prefix | row 1 | row 2 | …]`, and where side by side.

    Side by side the rows are `slots` wide, and each sees the prefix before itself; the prefix is a row of
    its own there. Indices count token by token, head by head; an empty slot points one token past the end.
    """

    prefix: int
    """Tokens that all rows share; 0: none."""
    rows: int
    kv_heads: int
    positions: torch.Tensor
    """Of each token in its own text `(tokens,)`."""
    mask: torch.Tensor
    """What is added to the scores `(rows, 1, slots, prefix + slots)`: 0 where a token is seen, else -inf."""
    query_index: torch.Tensor
    """From `(tokens, heads)` to `(kv_heads, rows, groups, slots)`."""
    key_index: torch.Tensor
    """From `(tokens, kv_heads)` to `(kv_heads, rows, prefix + slots)`."""
    token_index: torch.Tensor
    """Back from `(kv_heads, rows, groups, slots)` to `(tokens, heads)`."""
    own_key_index: torch.Tensor
    """Back from `(rows, prefix + slots)` to the tokens after the prefix."""

    @classmethod
    def of(
        cls,
        prefix: int,
        lengths: Sequence[int],
        heads: int,
        kv_heads: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> RowLayout:
        """Lay out rows of `lengths` tokens that follow a common prefix of `prefix` tokens."""
        blocks = ([prefix] if prefix else []) + list(lengths)
        rows, tokens, slots, groups = len(blocks), sum(blocks), max(blocks), heads // kv_heads
        queries = torch.full((rows, slots), tokens)
        row = torch.repeat_interleave(torch.arange(rows), torch.tensor(blocks))
        slot = torch.cat([torch.arange(length) for length in blocks])
        queries[row, slot] = torch.arange(tokens)
        keys = torch.cat([torch.arange(prefix).expand(rows, prefix), queries], dim=1)
        head = torch.arange(heads)
        by_head = head.view(kv_heads, 1, groups, 1)
        home = (head // groups) * rows * groups + head % groups
        tensors = (
            slot + prefix * (torch.arange(tokens) >= prefix),
            _mask(rows, slots, prefix, dtype),
            (queries[None, :, None] * heads + by_head).view(-1),
            (keys[None] * kv_heads + torch.arange(kv_heads)[:, None, None]).view(-1),
            ((home + row[:, None] * groups) * slots + slot[:, None]).view(-1),
            (row * (prefix + slots) + prefix + slot)[prefix:],
        )
        return cls(prefix, rows, kv_heads, *(tensor.to(device) for tensor in tensors))


def _mask(rows: int, slots: int, prefix: int, dtype: torch.dtype) -> torch.Tensor:
    unseen = torch.full((slots, slots), float("-inf"), dtype=dtype).triu(1)
    mask = torch.cat([unseen.new_zeros(slots, prefix), unseen], dim=1).repeat(rows, 1, 1)
    if prefix:
        # The prefix sees itself once, as everybody's keys, and not again as a row.
        mask[0, :, prefix:] = float("-inf")
        mask[0, :, :prefix] = unseen[:, :prefix]
    return mask[:, None]


class _RaggedAttention(torch.autograd.Function):
    """softmax(s Q Kᵀ + mask) V over rows laid side by side, with its gradient in four matrix products."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layout: RowLayout,
        scale: float,
    ) -> torch.Tensor:
        # The query heads that share a key head are stacked as rows, so that keys and values are never
        # repeated (Ainslie et al. 2023, grouped-query attention).
        shape = (layout.kv_heads * layout.rows, -1, query.shape[-1])
        q = _take(query, layout.query_index).mul_(scale).view(shape)
        k, v = _take(key, layout.key_index).view(shape), _take(value, layout.key_index).view(shape)
        scores = torch.bmm(q, k.transpose(1, 2))
        _, _, slots, seen = layout.mask.shape
        scores.view(layout.kv_heads, layout.rows, -1, slots, seen).add_(layout.mask)
        weights = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(q, k, v, weights)
        ctx.layout, ctx.scale = layout, scale
        return _give_back(torch.bmm(weights, v), layout)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        layout: RowLayout = ctx.layout
        grad = _take(grad_outputs[0].transpose(1, 2), layout.query_index).view(q.shape)
        grad_v = torch.bmm(weights.transpose(1, 2), grad)
        grad_weights = torch.bmm(grad, v.transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_q = torch.bmm(grad_scores, k).mul_(ctx.scale)
        grad_k = torch.bmm(grad_scores.transpose(1, 2), q)
        return (
            _give_back(grad_q, layout).transpose(1, 2),
            _collect(grad_k, layout),
            _collect(grad_v, layout),
            None,
            None,
        )


def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: RowLayout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of the rows of `layout`; without one, of a batch of rows padded on the right.

    Shapes: query `(1, heads, tokens, width)`, key and value `(1, kv_heads, tokens, width)`; returns
    `(1, tokens, heads, width)`. Without a layout the batch may be larger than 1.
    """
    batch, heads, tokens, width = query.shape
    scale = width**-0.5 if scaling is None else scaling
    if layout is None:
        layout = RowLayout.of(0, [tokens] * batch, heads, key.shape[1], query.dtype, query.device)
        query, key, value = (x.transpose(0, 1).flatten(1, 2)[None] for x in (query, key, value))
    out: torch.Tensor = _RaggedAttention.apply(query, key, value, layout, scale)  # type: ignore[no-untyped-call]
    return out.view(batch, tokens, heads, width), None


def _take(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Gather `(1, heads, tokens, width)` by token and head; empty slots get zeros."""
    heads, width = x.shape[1], x.shape[3]
    flat = x.transpose(1, 2).reshape(-1, width)
    return torch.nn.functional.pad(flat, (0, 0, 0, heads)).index_select(0, index)


def _give_back(x: torch.Tensor, layout: RowLayout) -> torch.Tensor:
    """Return `(1, tokens, heads, width)` of rows side by side `(kv_heads × rows, groups × slots, width)`."""
    width = x.shape[-1]
    back = x.reshape(-1, width).index_select(0, layout.token_index)
    return back.view(1, len(layout.positions), -1, width)


def _collect(x: torch.Tensor, layout: RowLayout) -> torch.Tensor:
    """Return the gradient `(1, kv_heads, tokens, width)` of keys `(kv_heads × rows, prefix + slots, width)`:
    each row's own, and for the prefix the sum over all rows."""
    by_row = x.view(layout.kv_heads, layout.rows, -1, x.shape[-1])
    parts = [by_row.flatten(1, 2).index_select(1, layout.own_key_index)]
    if layout.prefix:
        parts.insert(0, by_row[:, :, : layout.prefix].sum(1))
    return torch.cat(parts, dim=1)[None]


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None
