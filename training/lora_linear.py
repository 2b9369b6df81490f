"""One autograd step for a frozen linear layer with its LoRA pair.

PEFT's own forward costs a mask, three matrix products and four passes over activations per layer, each with
its own autograd node. This computes the same numbers with fewer passes; PEFT keeps the parameters, the
configuration and the file format. With dropout 0 the results equal PEFT's up to rounding (tested).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

_KEEP_BITS = 15
"""Random bits per dropout decision: probabilities are exact to 1/32,768."""
POOL_WINDOWS = 4
"""Size of a step's pool of decisions, in masks of its widest layer: 6 MB at 500 tokens of SmolLM2-135M."""
_ALIGNMENT = 32


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
        dropped: torch.Tensor,
        keep: torch.Tensor | None,
    ) -> torch.Tensor:
        down = dropped @ a.t()
        y = torch.nn.functional.linear(x.reshape(-1, x.shape[-1]), weight, bias)
        y.addmm_(down, b.t(), alpha=scale)
        # `dropped` and `keep` are shared by the layers that read the same input.
        ctx.save_for_backward(dropped, keep, down, weight, a, b)
        ctx.scale = scale
        ctx.x_shape = x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dropped, keep, down, weight, a, b = ctx.saved_tensors
        grad = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1])
        up = (grad @ b).mul_(ctx.scale)
        grad_a = up.t() @ dropped
        grad_b = (grad.t() @ down).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if keep is None:
                grad_x.addmm_(up, a)
            else:
                grad_x += mask_(up @ a, keep)
            grad_x = grad_x.view(ctx.x_shape)
        return grad_x, None, None, grad_a, grad_b, None, None, None


@dataclass(frozen=True)
class Dropped:
    """A layer's input after dropout."""

    rows: torch.Tensor
    """`(tokens, width)`, not yet divided by the share that is kept: LoraPart.scale is."""
    keep: torch.Tensor | None
    """The mask; None where nothing is dropped."""


class DropoutMasks:
    """Dropout masks of one step: windows of one pool of decisions, which is drawn anew for every step.

    Within a window every decision is independent; windows of two layers begin at random places and may
    overlap. Drawing each layer's own decisions was 13 % of a CPU step (one generator, one thread). Layers
    that read the same input (q, k, v; gate, up) share its window, as they would behind one dropout in front
    of a fused projection.
    """

    def __init__(self, layers: int, probability: float, widest: int, devices: Iterable[torch.device]) -> None:
        """`layers` draw from it, on `devices`; `widest` is the largest number of inputs of one of them."""
        self.layers = layers
        self._probability = probability
        self._widest = widest
        self._devices = tuple(dict.fromkeys(devices))
        self._pools: dict[torch.device, torch.Tensor] = {}
        self._input: torch.Tensor | None = None
        self._dropped: Dropped | None = None

    def renew(self, tokens: int, dtype: torch.dtype) -> None:
        """Draw the pools of a step that feeds at most `tokens`.

        All of it before the forward pass: layers that are computed again in the backward pass (gradient
        checkpointing) must draw the same windows.
        """
        self._input = self._dropped = None
        for device in self._devices if self._probability else ():
            self._pools[device] = draw_keep_mask(
                POOL_WINDOWS * tokens * self._widest, self._probability, dtype, device
            )

    def drop(self, x: torch.Tensor) -> Dropped:
        """Return the rows of `x` with some numbers set to 0, the same ones for every layer that reads `x`."""
        if self._input is not x or self._dropped is None:
            keep = self.draw(x)
            rows = x.detach().reshape(-1, x.shape[-1])
            self._input, self._dropped = x, Dropped(masked(rows, keep), keep)
        return self._dropped

    def draw(self, x: torch.Tensor) -> torch.Tensor:
        """Return a mask shaped like the rows of `x`: all bits set to keep a number, none to drop it."""
        if x.device not in self._pools or self._pools[x.device].numel() < x.numel():
            self.renew(x.numel() // x.shape[-1], x.dtype)
        pool = self._pools[x.device]
        # Whole cache lines, so that a mask is read as fast as any tensor.
        places = (pool.numel() - x.numel()) // _ALIGNMENT
        start = int(torch.randint(places + 1, ())) * _ALIGNMENT
        return pool[start : start + x.numel()].view(-1, x.shape[-1])


def draw_keep_mask(
    count: int, probability: float, dtype: torch.dtype, device: torch.device | None = None
) -> torch.Tensor:
    """Return `count` integers as wide as numbers of `dtype`: -1 (all bits) with 1-p, 0 with p.

    Four decisions per random 64-bit word and integer arithmetic throughout: `bernoulli_` takes four times as
    long, and converting booleans to bf16 as long again.
    """
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=device)
    words.random_(-(2**63), None)
    chance = words.view(torch.int16)[:count].bitwise_and_(2**_KEEP_BITS - 1)
    chance -= round(probability * 2**_KEEP_BITS)  # negative: drop
    keep = chance.bitwise_right_shift_(15).bitwise_not_()
    return keep.to(_integer_of(dtype))


def masked(rows: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    return (rows.view(keep.dtype) & keep).view(rows.dtype)


def mask_(rows: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """Apply a mask in place."""
    if keep is not None:
        rows.view(keep.dtype).bitwise_and_(keep)
    return rows


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
        dropped = masks.drop(x) if part.dropout else Dropped(x.detach().reshape(-1, x.shape[-1]), None)
        return _LoraLinear.apply(  # type: ignore[no-any-return, no-untyped-call]
            x, part.weight, part.bias, part.a, part.b, part.scale, dropped.rows, dropped.keep
        )

    return forward
