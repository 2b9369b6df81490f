"""Ollama 0.33's own import of PEFT safetensors adapters, with its fault.

`convert/convert_llama_adapter.go` of 0.33.0-rc2 permutes lora_A of q_proj and k_proj (in the wrong memory
order, k_proj with the query heads' count) where llama.cpp needs lora_B permuted; rank, rsLoRA and target
modules of the config are ignored. A client that sends PEFT must meet that fault here too.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import SafetensorError, safe_open

_REPLACEMENTS = (
    ("base_model.model.", ""),
    ("model.layers", "blk"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.up_proj", "ffn_up"),
    ("lora_A.weight", "weight.lora_a"),
    ("lora_B.weight", "weight.lora_b"),
)


class BadPeft(Exception):
    """The files cannot be converted; the text is Ollama's."""


def convert_peft(files: dict[str, Path], base_kv: dict[str, Any], out: Path) -> None:
    """Write the adapter in `files` (name → blob) as a GGUF file. Raises BadPeft."""
    config_path = files.get("adapter_config.json")
    if config_path is None or not config_path.exists():
        raise BadPeft("open adapter_config.json: no such file or directory")
    try:
        config = json.loads(config_path.read_text())
    except ValueError as exc:
        raise BadPeft("unexpected end of JSON input") from exc
    alpha = config.get("lora_alpha", 0)
    if not isinstance(alpha, int):
        raise BadPeft(
            f"json: cannot unmarshal number {alpha} into Go struct field AdapterParameters.lora_alpha "
            "of type uint32"
        )
    architecture = base_kv.get("general.architecture", "")
    if architecture != "llama":
        # gemma2 is converted by Ollama as well; no base of that architecture is at hand here.
        raise BadPeft("unsupported architecture")
    heads = int(base_kv["llama.attention.head_count"])
    writer = gguf.GGUFWriter(out, architecture)
    writer.add_string("general.type", "adapter")
    writer.add_uint32("general.file_type", 1)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(alpha))
    writer.add_uint32("llama.attention.head_count", heads)
    writer.add_uint32("llama.attention.head_count_kv", int(base_kv["llama.attention.head_count_kv"]))
    for name, path in sorted(files.items()):
        if name.endswith(".safetensors"):
            _add_tensors(writer, name, path, heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensors(writer: gguf.GGUFWriter, name: str, path: Path, heads: int) -> None:
    if not path.exists():
        raise BadPeft(f"open {name}: no such file or directory")
    try:
        with safe_open(path, framework="numpy") as tensors:
            for key in sorted(tensors.keys()):
                writer.add_tensor(*_convert(key, tensors.get_tensor(key), heads))
    except SafetensorError as exc:
        raise BadPeft("EOF") from exc


def _convert(key: str, data: np.ndarray, heads: int) -> tuple[str, np.ndarray]:
    new = key
    for old, replacement in _REPLACEMENTS:
        new = new.replace(old, replacement)
    if re.search(r"attn_[qk]\.weight\.lora_a$", new):
        rank, columns = data.shape
        scrambled = data.reshape(heads, 2, columns // heads // 2, rank).transpose(0, 2, 1, 3)
        data = np.ascontiguousarray(scrambled).reshape(rank, columns)
    return new, data.astype(np.float16)
