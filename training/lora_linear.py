"""One autograd step for a frozen linear layer with its LoRA pair.

PEFT's own forward costs a mask, three matrix products and four passes over activations per layer, each with
its own autograd node. This computes the same numbers with fewer passes; PEFT keeps the parameters, the
configuration and the file format. With dropout 0 the results equal PEFT's up to rounding (tested).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_KEEP_BITS = 15
"""Random bits per dropout decision: probabilities are exact to 1/32,768."""


class _LoraLinear(torch.autograd.Function):
    """y = x Wᵀ + bias + s · drop(x) Aᵀ Bᵀ, gradients for x, A and B only (W is frozen)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
        keep: torch.Tensor | None,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        down = masked(rows, keep) @ a.t()
        y = torch.nn.functional.linear(rows, weight, bias)
        y.addmm_(down, b.t(), alpha=scale)
        # `rows` and `keep` are shared by the layers that read the same input; what is dropped is computed
        # again in the backward pass (one pass over memory) rather than kept seven times per block.
        ctx.save_for_backward(rows, keep, down, weight, a, b)
        ctx.scale = scale
        ctx.x_shape = x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, keep, down, weight, a, b = ctx.saved_tensors
        grad = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1])
        up = (grad @ b).mul_(ctx.scale)
        grad_a = up.t() @ masked(rows, keep)
        grad_b = (grad.t() @ down).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if keep is None:
                grad_x.addmm_(up, a)
            else:
                grad_x += masked(up @ a, keep)
            grad_x = grad_x.view(ctx.x_shape)
        return grad_x, None, None, grad_a, grad_b, None, None


class DropoutMasks:
    """Draws dropout masks; layers that read the same input (q, k, v; gate, up) share its mask, as they
    would behind one dropout in front of a fused projection."""

    def __init__(self) -> None:
        self._input: torch.Tensor | None = None
        self._keep: torch.Tensor | None = None

    def draw(self, x: torch.Tensor, probability: float) -> torch.Tensor:
        """Return a mask shaped like the rows of `x`: all bits set to keep a number, none to drop it."""
        if self._input is not x or self._keep is None:
            self._input, self._keep = x, draw_keep_mask(x.reshape(-1, x.shape[-1]), probability)
        return self._keep


def draw_keep_mask(rows: torch.Tensor, probability: float) -> torch.Tensor:
    """Return an integer mask as wide as the numbers in `rows`: -1 (all bits) with 1-p, 0 with p.

    Four decisions per random 64-bit word and integer arithmetic throughout: `bernoulli_` alone was 15 % of
    a CPU training step, and converting booleans to bf16 another 5 %.
    """
    words = torch.empty((rows.numel() + 3) // 4, dtype=torch.int64, device=rows.device)
    words.random_(-(2**63), None)
    chance = words.view(torch.int16)[: rows.numel()].bitwise_and_(2**_KEEP_BITS - 1)
    chance -= round(probability * 2**_KEEP_BITS)  # negative: drop
    keep = chance.bitwise_right_shift_(15).bitwise_not_()
    return keep.to(_integer_of(rows.dtype)).view(rows.shape)


def masked(rows: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    return rows if keep is None else (rows.view(keep.dtype) & keep).view(rows.dtype)


def _integer_of(dtype: torch.dtype) -> torch.dtype:
    return torch.int32 if dtype == torch.float32 else torch.int16


@dataclass(frozen=True)
class LoraPart:
    """What the fused forwards need of one PEFT layer."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    a: torch.Tensor
    b: torch.Tensor
    scale: float
    """Of the adapter, divided by the share that dropout keeps."""
    dropout: float


def part_of(layer: Any, adapter: str) -> LoraPart | None:
    """Return the layer's parts, or None while PEFT's own forward must be used (no adapter, or merged)."""
    if layer.disable_adapters or layer.merged or layer.active_adapters != [adapter]:
        return None
    dropout = getattr(layer.lora_dropout[adapter], "p", 0.0) if layer.training else 0.0
    return LoraPart(
        layer.base_layer.weight,
        layer.base_layer.bias,
        layer.lora_A[adapter].weight,
        layer.lora_B[adapter].weight,
        layer.scaling[adapter] / (1 - dropout),
        dropout,
    )


def is_plain(layer: Any, adapter: str) -> bool:
    """Tell whether a module is a LoRA layer over plain weights (no DoRA, not quantised)."""
    from peft.tuners.lora.layer import Linear

    return type(layer) is Linear and not layer.use_dora.get(adapter, False)


def fuse(layer: Any, adapter: str, masks: DropoutMasks) -> Any:
    """Return the forward of one LoRA layer as one autograd step."""
    original = layer.forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        part = part_of(layer, adapter)
        if part is None:
            return original(x, *args, **kwargs)  # type: ignore[no-any-return]
        keep = masks.draw(x, part.dropout) if part.dropout else None
        return _LoraLinear.apply(  # type: ignore[no-any-return, no-untyped-call]
            x, part.weight, part.bias, part.a, part.b, part.scale, keep
        )

    return forward
