"""One autograd step for a gated MLP with LoRA on its three linear layers: down(silu(gate(x)) · up(x)).

Between the layers transformers keeps four activations of the MLP's full width for the backward pass, each
through an autograd node of its own. Here two are kept and the rest is computed again, and the adapters of
`gate` and `up`, which read the same input, share their products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import silu

from training.lora_linear import DropoutMasks, Dropped, LoraPart, mask_, masked, part_of


class _LoraMlp(torch.autograd.Function):
    """Gradients for x and the six adapter matrices only; the base's three are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        gate: LoraPart,
        up: LoraPart,
        down: LoraPart,
        dropped: torch.Tensor,
        keep: torch.Tensor | None,
        masks: DropoutMasks,
        gate_a: torch.Tensor,
        gate_b: torch.Tensor,
        up_a: torch.Tensor,
        up_b: torch.Tensor,
        down_a: torch.Tensor,
        down_b: torch.Tensor,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        rank = gate_a.shape[0]
        low = dropped @ torch.cat([gate_a, up_a]).t()
        gated = (rows @ gate.weight.t()).addmm_(low[:, :rank], gate_b.t(), alpha=gate.scale)
        lifted = (rows @ up.weight.t()).addmm_(low[:, rank:], up_b.t(), alpha=up.scale)
        inner = silu(gated).mul_(lifted)
        keep_inner = masks.draw(inner) if down.dropout else None
        inner_low = (inner if keep_inner is None else masked(inner, keep_inner)) @ down_a.t()
        y = (inner @ down.weight.t()).addmm_(inner_low, down_b.t(), alpha=down.scale)
        ctx.save_for_backward(
            *(dropped, keep, low, gated, lifted, keep_inner, inner_low),
            *(gate_a, gate_b, up_a, up_b, down_a, down_b),
        )
        ctx.parts, ctx.x_shape = (gate, up, down), x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dropped, keep, low, gated, lifted, keep_inner, inner_low, *matrices = ctx.saved_tensors
        gate_a, gate_b, up_a, up_b, down_a, down_b = matrices
        gate, up, down = ctx.parts
        rank = gate_a.shape[0]
        grad = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1])

        activated = silu(gated)
        high = (grad @ down_b).mul_(down.scale)
        grad_down_b = (grad.t() @ inner_low).mul_(down.scale)
        grad_down_a = high.t() @ mask_(activated * lifted, keep_inner)
        grad_inner = grad @ down.weight
        if keep_inner is None:
            grad_inner.addmm_(high, down_a)
        else:
            grad_inner += mask_(high @ down_a, keep_inner)

        grad_lifted = activated.mul_(grad_inner)
        grad_gated = torch.ops.aten.silu_backward(grad_inner.mul_(lifted), gated)
        highs = torch.cat(
            [(grad_gated @ gate_b).mul_(gate.scale), (grad_lifted @ up_b).mul_(up.scale)], dim=1
        )
        grad_gate_b = (grad_gated.t() @ low[:, :rank]).mul_(gate.scale)
        grad_up_b = (grad_lifted.t() @ low[:, rank:]).mul_(up.scale)
        grad_as = highs.t() @ dropped
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_gated @ gate.weight).addmm_(grad_lifted, up.weight)
            through_low = torch.cat([gate_a, up_a])
            if keep is None:
                grad_x.addmm_(highs, through_low)
            else:
                grad_x += mask_(highs @ through_low, keep)
            grad_x = grad_x.view(ctx.x_shape)
        grads = (grad_as[:rank], grad_gate_b, grad_as[rank:], grad_up_b, grad_down_a, grad_down_b)
        return (grad_x, *[None] * 6, *grads)


def fuse(mlp: Any, adapter: str, masks: DropoutMasks) -> Any:
    """Return the forward of a transformers MLP whose three layers are PEFT LoRA layers."""
    original = mlp.forward
    layers = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)

    def forward(x: torch.Tensor) -> torch.Tensor:
        parts = [part_of(layer, adapter) for layer in layers]
        if any(part is None for part in parts) or parts[0].dropout != parts[1].dropout:  # type: ignore[union-attr]
            return original(x)  # type: ignore[no-any-return]
        gate, up, down = parts
        dropped = masks.drop(x) if gate.dropout else Dropped(x.detach().reshape(-1, x.shape[-1]), None)  # type: ignore[union-attr]
        matrices = [m for part in parts for m in (part.a, part.b)]  # type: ignore[union-attr]
        return _LoraMlp.apply(  # type: ignore[no-any-return, no-untyped-call]
            x, gate, up, down, dropped.rows, dropped.keep, masks, *matrices
        )

    return forward
