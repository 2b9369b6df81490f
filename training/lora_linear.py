"""One autograd step for a frozen linear layer with its LoRA pair.

PEFT's own forward costs a mask, three matrix products and four passes over activations per layer, each with
its own autograd node. This computes the same numbers with fewer passes; PEFT keeps the parameters, the
configuration and the file format. With dropout 0 the results equal PEFT's up to rounding (tested).
"""

from __future__ import annotations

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
        down = _masked(rows, keep) @ a.t()
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
        grad_a = up.t() @ _masked(rows, keep)
        grad_b = (grad.t() @ down).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if keep is None:
                grad_x.addmm_(up, a)
            else:
                grad_x += _masked(up @ a, keep)
            grad_x = grad_x.view(ctx.x_shape)
        return grad_x, None, None, grad_a, grad_b, None, None


class _DropoutMasks:
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


def _masked(rows: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    return rows if keep is None else (rows.view(keep.dtype) & keep).view(rows.dtype)


def _integer_of(dtype: torch.dtype) -> torch.dtype:
    return torch.int32 if dtype == torch.float32 else torch.int16


def speed_up(model: torch.nn.Module, adapter: str = "default") -> int:
    """Give every plain LoRA linear layer of a PEFT model the fused forward; returns how many.

    Layers with an adapter that this does not cover (DoRA, quantised weights) keep PEFT's forward.
    """
    from peft.tuners.lora.layer import Linear

    masks = _DropoutMasks()
    changed = 0
    for module in model.modules():
        if type(module) is Linear and not module.use_dora.get(adapter, False):  # type: ignore[union-attr, operator]
            module.forward = _fused_forward(module, adapter, masks)  # type: ignore[method-assign]
            changed += 1
    return changed


def _fused_forward(module: Any, adapter: str, masks: _DropoutMasks) -> Any:
    original = module.forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if module.disable_adapters or module.merged or module.active_adapters != [adapter]:
            return original(x, *args, **kwargs)  # type: ignore[no-any-return]
        a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        probability = getattr(module.lora_dropout[adapter], "p", 0.0) if module.training else 0.0
        keep = masks.draw(x, probability) if probability else None
        scale = module.scaling[adapter] / (1 - probability)
        base = module.base_layer
        return _LoraLinear.apply(  # type: ignore[no-any-return, no-untyped-call]
            x, base.weight, base.bias, a, b, scale, keep
        )

    return forward
