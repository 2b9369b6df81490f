"""Attention on CUDA by fused kernels, plugged into transformers' attention interface.

Under names of our own: for its own implementations transformers looks at every forward pass whether the
positions are those of packed rows, and the answer to that waits for the GPU. Rows padded on the right, or
laid one behind another with their bounds given, need no mask but the causal one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

SDPA, VARLEN = "ownvoice_sdpa", "ownvoice_varlen"


def register_sdpa() -> str:
    """Make PyTorch's fused attention known, for rows padded on the right; returns its name."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(SDPA, sdpa_attention_forward)
    return SDPA


def register_varlen() -> str:
    """Make FlashAttention-2 known, for rows one behind another; returns its name.

    Raises ImportError without the package flash-attn.
    """
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]
    from transformers import AttentionInterface

    AttentionInterface.register(VARLEN, varlen_attention(flash_attn_varlen_func))
    return VARLEN


def varlen_attention(kernel: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, None]]:
    """Return causal attention of rows that lie one behind another, by flash-attn's varlen function.

    Shapes: query `(1, heads, tokens, width)`, key and value `(1, kv_heads, tokens, width)`; returns
    `(1, tokens, heads, width)`. `row_bounds` `(rows + 1,)` int32 says where rows begin, `longest_row` counts
    tokens (Dao 2023, arXiv 2307.08691; flash_attn_interface.py).
    """

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        *,
        row_bounds: torch.Tensor,
        longest_row: int,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        bounds = row_bounds.to(q.device, non_blocking=True)  # layers of another GPU need a copy there
        out = kernel(q, k, v, bounds, bounds, longest_row, longest_row, softmax_scale=scaling, causal=True)
        return out[None], None

    return attend
