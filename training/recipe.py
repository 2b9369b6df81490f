"""`run.json`: the exact recipe of one adapter, enough to make it again."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from training.base_models import BaseModel
from training.config import TrainConfig
from training.export import sha256_of

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "tokenizers",
    "gguf",
    "safetensors",
    "ownvoice-emailai",
)


def describe_recipe(
    base: BaseModel, config: TrainConfig, dataset: str, held_out: str, device: str
) -> dict[str, Any]:
    """Return config, base revision and digest, data set hashes, seed, package versions and device."""
    gguf = base.gguf_path
    return {
        "baseModel": base.id,
        "baseRevision": base.revision,
        "baseDigest": sha256_of(gguf) if gguf is not None else None,
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "datasetSha256": hashlib.sha256(dataset.encode("utf-8")).hexdigest(),
        "heldOutSha256": hashlib.sha256(held_out.encode("utf-8")).hexdigest(),
        "device": device,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
