"""Plain matrix-product attention for short rows, plugged into transformers' attention interface.

On CPU the backward pass of PyTorch's fused attention is the slow part at mail length: two batched matrix
products and a softmax took a third to a quarter of its time (references/training.md §1, measured for rows
of 48–384 tokens). On CUDA the fused kernels win, and this module is not used.
"""

from __future__ import annotations

from typing import Any

import torch

NAME = "ownvoice_bmm"


def register() -> str:
    """Make the implementation known to transformers; returns the name for `attn_implementation`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, bmm_attention)
    # Rows are padded on the right only, and the causal mask alone keeps every real token from seeing
    # padding, so no per-row mask is ever built.
    AttentionMaskInterface.register(NAME, _no_mask)
    return NAME


def bmm_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention over right-padded rows.

    Shapes: query `(batch, heads, tokens, width)`, key and value `(batch, kv_heads, tokens, width)`;
    returns `(batch, tokens, heads, width)`. The query heads that share a key head are stacked as rows, so
    that keys and values are never repeated (Ainslie et al. 2023, grouped-query attention).
    """
    batch, heads, tokens, width = query.shape
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    scale = width**-0.5 if scaling is None else scaling
    rows = (query * scale).reshape(batch * kv_heads, groups * tokens, width)
    scores = torch.bmm(rows, key.reshape(batch * kv_heads, tokens, width).transpose(1, 2))
    scores = scores.view(batch * kv_heads, groups, tokens, tokens) + _causal(
        tokens, query.dtype, query.device
    )
    weights = torch.softmax(scores, dim=-1).view(batch * kv_heads, groups * tokens, tokens)
    out = torch.bmm(weights, value.reshape(batch * kv_heads, tokens, width))
    return out.view(batch, heads, tokens, width).transpose(1, 2), None


def _causal(tokens: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the additive `(tokens, tokens)` mask: 0 at and below the diagonal, -inf above."""
    return torch.full((tokens, tokens), float("-inf"), dtype=dtype, device=device).triu(1)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None
