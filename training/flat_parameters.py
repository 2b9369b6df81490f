"""All adapter parameters as one vector, so that clipping and the optimiser's step are one pass each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from peft import PeftModel


class FlatParameters:
    """All adapter parameters as views of one vector in the model's precision, with an fp32 master copy.

    Sizes: a rank-16 adapter on all linear layers of SmolLM2-135M is 4,884,480 numbers.
    """

    def __init__(self, model: PeftModel) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.working = torch.cat([p.detach().reshape(-1) for p in parameters])
        self.gradient = torch.zeros_like(self.working)
        self.master = self.working.float().requires_grad_(True)
        start = 0
        for parameter in parameters:
            stop = start + parameter.numel()
            parameter.data = self.working[start:stop].view_as(parameter)
            parameter.grad = self.gradient[start:stop].view_as(parameter)
            start = stop

    def update(self, optimiser: torch.optim.Optimizer, max_grad_norm: float) -> None:
        """Clip by global norm (Pascanu et al. 2013), step on the master, refresh the working copy."""
        self.master.grad = self.gradient.float()
        torch.nn.utils.clip_grad_norm_([self.master], max_grad_norm)
        optimiser.step()
        self.copy_to_working()
        self.gradient.zero_()

    @torch.no_grad()
    def copy_to_working(self) -> None:
        self.working.copy_(self.master)
