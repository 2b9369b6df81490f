"""Cross entropy on reply tokens, straight from hidden states, without a logits tensor that survives.

At a vocabulary of 49,152 the full `(tokens, vocabulary)` logits and their fp32 softmax were about 35 % of a
training step on CPU (references/training.md §1); only reply tokens are ever predicted, a chunk at a time.
"""

from __future__ import annotations

from typing import Any

import torch

CHUNK_TOKENS = 128
"""Reply tokens whose logits exist at once: 128 × 49,152 × 2 bytes = 12.6 MB."""


class _ReplyCrossEntropy(torch.autograd.Function):
    """Sum of -log p(target) over reply tokens; the forward pass also makes the hidden states' gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        gradient = torch.empty_like(hidden)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], CHUNK_TOKENS):
            chunk = slice(start, start + CHUNK_TOKENS)
            target = targets[chunk, None]
            probabilities = torch.softmax(hidden[chunk] @ weight.t(), dim=-1)
            at_target = probabilities.gather(1, target)
            total -= at_target.float().clamp_min(1e-30).log().sum()
            # d(-log softmax)/d logits = p - 1[target], in place: `scatter_` copies all of the logits on CPU.
            probabilities[torch.arange(len(target), device=target.device), target[:, 0]] = at_target[:, 0] - 1
            torch.mm(probabilities, weight, out=gradient[chunk])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].to(gradient.dtype), None, None


def reply_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the summed loss (nat, float32) of `targets` `(tokens,)` given `hidden` `(tokens, width)`.

    `weight` is the frozen output matrix `(vocabulary, width)`; it gets no gradient.
    """
    return _ReplyCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-any-return, no-untyped-call]


@torch.no_grad()
def reply_log_likelihood(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return log p(target) per token `(tokens,)`, softmax in float32: for measuring, not for training."""
    parts = []
    for start in range(0, hidden.shape[0], CHUNK_TOKENS):
        chunk = slice(start, start + CHUNK_TOKENS)
        logits = (hidden[chunk] @ weight.t()).float()
        parts.append(logits.gather(1, targets[chunk, None])[:, 0] - logits.logsumexp(-1))
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)
