"""Faster forwards for a PEFT model's own modules; its classes, parameters and file format stay.

Each does what its module's forward does, in one autograd step instead of many (training.lora_linear,
training.lora_mlp, training.rms_norm); results are equal up to rounding, which is tested per architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from training import lora_linear, lora_mlp, rms_norm
from training.lora_linear import DropoutMasks

GATED_MLPS = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")
"""transformers' classes whose forward is `down(act(gate(x)) * up(x))`; fused where act is SiLU."""
RMS_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
"""Those whose forward is `weight * x / rms(x)`; Gemma's is `(1 + weight) * …` and keeps its own."""


def speed_up(model: torch.nn.Module, adapter: str = "default") -> DropoutMasks:
    """Give every module that is covered its fused forward; returns their dropout masks, which say how many
    LoRA layers have one, and which training renews before every step.

    Adapters that this does not cover (quantised weights) keep PEFT's forward.
    """
    layers = [module for module in model.modules() if lora_linear.is_plain(module, adapter)]
    masks = _masks_for(layers, adapter)
    for layer in layers:
        layer.forward = lora_linear.fuse(layer, adapter, masks)  # type: ignore[method-assign]
    for module in model.modules():
        kind = type(module).__name__
        if kind in GATED_MLPS and _is_covered(module, adapter):
            module.forward = lora_mlp.fuse(module, adapter, masks)  # type: ignore[method-assign]
        elif kind in RMS_NORMS and not module.weight.requires_grad:  # type: ignore[union-attr]
            module.forward = rms_norm.fuse(module)  # type: ignore[method-assign]
    return masks


def _masks_for(layers: Sequence[Any], adapter: str) -> DropoutMasks:
    weights = [layer.base_layer.weight for layer in layers]
    return DropoutMasks(
        len(layers),
        max((getattr(layer.lora_dropout[adapter], "p", 0.0) for layer in layers), default=0.0),
        max((weight.shape[1] for weight in weights), default=0),
        [weight.device for weight in weights],
    )


def restore_forwards(model: torch.nn.Module) -> None:
    """Give the base's own modules back their own forwards; LoRA layers go with their adapter."""
    for module in model.modules():
        if type(module).__name__ in GATED_MLPS + RMS_NORMS:
            module.__dict__.pop("forward", None)


def _is_covered(mlp: Any, adapter: str) -> bool:
    layers = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    return type(mlp.act_fn).__name__ in ("SiLU", "SiLUActivation") and all(
        lora_linear.is_plain(layer, adapter) and layer.base_layer.bias is None for layer in layers
    )
