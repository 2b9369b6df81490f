"""The optimiser of the adapter's master weights."""

from __future__ import annotations

import warnings

import torch

from training.config import TrainConfig


def make_optimiser(master: torch.Tensor, config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW over the master vector (Loshchilov & Hutter 2019, decoupled decay).

    `adamw` is PyTorch's fused one: one pass on CPU, one kernel on CUDA. `paged_adamw_8bit` is bitsandbytes'
    (Dettmers et al. 2021 and 2023): moments of 8 bits that move to the CPU's memory when the GPU is full;
    without CUDA they are 8-bit all the same and do not move.
    """
    if config.optimiser == "paged_adamw_8bit":
        from bitsandbytes.optim import PagedAdamW8bit

        if master.device.type == "cpu":
            warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
        return PagedAdamW8bit(  # type: ignore[no-any-return]
            [master], lr=config.learning_rate, weight_decay=config.weight_decay
        )
    return torch.optim.AdamW([master], lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
