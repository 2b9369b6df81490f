"""Root-mean-square norm with its gradient in one autograd step (Zhang & Sennrich 2019).

transformers' norm goes through float32 in seven steps and keeps three float32 copies of its input, 61 times
in SmolLM2. The arithmetic is the same: float32 inside, the input's precision outside.
"""

from __future__ import annotations

from typing import Any

import torch


class _RmsNorm(torch.autograd.Function):
    """y = w · x / sqrt(mean(x²) + eps); gradient for x only, w is frozen."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        scale = x.float().square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        y: torch.Tensor = (x * scale).to(x.dtype).mul_(weight)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        grad = grad_outputs[0] * weight.float()  # a new tensor: in float32 `float()` would be the same one
        # d/dx (x s) with s = (mean x² + eps)^-1/2:  s g - x s³ mean(g x)
        along = (grad * x).mean(-1, keepdim=True).mul_(scale.pow(3))
        return grad.mul_(scale).addcmul_(x.float(), along, value=-1).to(x.dtype), None, None


def fuse(norm: Any) -> Any:
    """Return the forward of a transformers RMS norm with a frozen weight."""

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        return _RmsNorm.apply(hidden_states, norm.weight, norm.variance_epsilon)  # type: ignore[no-any-return, no-untyped-call]

    return forward
