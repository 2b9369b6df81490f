"""The adapter that a retrain goes on from: does it fit, and its weights. PEFT's own files, read with care."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.config import LoraConfig
from training.errors import AdapterRefused
from training.export import sha256_of

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def find_misfit(found: Mapping[str, Any], wanted: LoraConfig) -> str:
    """Say why an adapter with this adapter_config.json cannot be trained further as `wanted`; "" if it can.

    Dropout is no part of an adapter's shape and may differ.
    """
    modules = found.get("target_modules")
    pairs = [
        ("rank", found.get("r"), wanted.rank),
        ("alpha", found.get("lora_alpha"), wanted.alpha),
        ("rsLoRA", bool(found.get("use_rslora")), wanted.use_rslora),
        (
            "target modules",
            ", ".join(sorted(modules)) if isinstance(modules, list) else modules,
            ", ".join(sorted(wanted.target_modules)),
        ),
    ]
    differing = [f"{name} {has}, not {wants}" for name, has, wants in pairs if has != wants]
    return f"it has {'; '.join(differing)}" if differing else ""


def digest_of(folder: Path) -> str:
    """Return `sha256:<hex>` of the adapter's weights. Raises AdapterRefused when they are not there."""
    try:
        return sha256_of(folder / WEIGHTS_FILE)
    except OSError as exc:
        raise _unreadable(WEIGHTS_FILE, exc) from exc


def read_start_adapter(folder: Path, wanted: LoraConfig) -> dict[str, torch.Tensor]:
    """Return the weights of a PEFT adapter by their names in its file.

    Raises AdapterRefused when a file is missing or torn, when the adapter has another shape than `wanted`,
    and when a weight is not a finite number: one NaN makes every later loss NaN.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise _unreadable(CONFIG_FILE, exc) from exc
    misfit = find_misfit(found, wanted) if isinstance(found, dict) else "its configuration is not an object"
    if misfit:
        raise AdapterRefused(
            f"The adapter in use cannot be trained further: {misfit}. Train with the preset it was made "
            "with, or with the mode replay, which starts a fresh adapter."
        )
    try:
        weights: dict[str, torch.Tensor] = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as exc:
        raise _unreadable(WEIGHTS_FILE, exc) from exc
    broken = sum(not bool(tensor.isfinite().all()) for tensor in weights.values())
    if broken:
        raise AdapterRefused(
            f"The adapter in use cannot be trained further: {broken} of its {len(weights)} tensors hold "
            "numbers that are not finite. Train with the mode replay, which starts a fresh adapter."
        )
    return weights


def load_weights(model: PeftModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Put `weights` in place of the fresh adapter's. Raises AdapterRefused unless every tensor fits."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    fresh = get_peft_model_state_dict(model)
    if {name: tensor.shape for name, tensor in fresh.items()} != {
        name: tensor.shape for name, tensor in weights.items()
    }:
        raise AdapterRefused(
            f"The adapter in use ({len(weights)} tensors) was made for another base model than the one that "
            f"is loaded ({len(fresh)} tensors of its shapes). Train with the mode replay."
        )
    set_peft_model_state_dict(model, dict(weights))


def _unreadable(name: str, exc: Exception) -> AdapterRefused:
    return AdapterRefused(
        f"{name} of the adapter in use cannot be read ({type(exc).__name__}). Train with the mode replay, "
        "which starts a fresh adapter."
    )
