"""How large an adapter will be, known before training from the base's dimensions."""

from __future__ import annotations

from training.base_models import BaseModel
from training.config import TrainConfig
from training.memory import adapter_parameters

BYTES_PER_NUMBER = 2
"""The GGUF adapter that is served stores float16."""


def adapter_bytes(base: BaseModel, config: TrainConfig) -> int:
    """Return the bytes of the adapter that is served; its names and header add a few tens of kilobytes."""
    return adapter_parameters(base.dimensions, config) * BYTES_PER_NUMBER


def describe_adapter_size(size_bytes: int) -> str:
    """Say a size for people, in megabytes of 10^6 bytes: `9.8 MB`, `84 MB`."""
    megabytes = size_bytes / 1e6
    return f"{megabytes:.1f} MB" if megabytes < 10 else f"{megabytes:.0f} MB"
