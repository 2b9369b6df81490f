"""PEFT adapter → GGUF adapter, the only form that every serving engine takes.

Sources: llama.cpp `convert_lora_to_gguf.py` and `src/llama-adapter.cpp` as described in
references/ollama.md §6: tensors `<base tensor>.lora_a` [r, in] and `.lora_b` [out, r] in numpy
orientation, run-time scale = alpha / rank.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from training.base_models import BaseModel
from training.errors import AdapterRefused

PERMUTED = {"self_attn.q_proj": "heads", "self_attn.k_proj": "kv_heads"}
"""Modules whose base rows llama.cpp's converter permutes, and the head count that decides how."""
_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight$")


def export_gguf(adapter_dir: Path, base: BaseModel, base_config: dict[str, Any], out: Path) -> str:
    """Write the PEFT adapter in `adapter_dir` as a GGUF file at `out`; returns `sha256:<hex>` of the file.

    `base_config` is the base's config.json (`num_attention_heads`, `num_key_value_heads`,
    `num_hidden_layers`). Factors are stored as float16, which holds bf16-trained values of ordinary size
    exactly. The file appears whole or not at all.

    Raises AdapterRefused for what a GGUF adapter cannot carry: DoRA, trained biases, fully trained modules,
    new tokens, expert or embedding factors, numbers that are not finite.
    """
    config = _read_config(adapter_dir)
    _refuse_unsupported(config)
    factors = _read_factors(adapter_dir)
    alpha = _alpha(config)
    heads = {
        "heads": int(base_config["num_attention_heads"]),
        "kv_heads": int(base_config.get("num_key_value_heads") or base_config["num_attention_heads"]),
    }
    names = _tensor_names(base.architecture, int(base_config["num_hidden_layers"]))

    import gguf

    aside = out.with_name(f".{out.name}.{os.getpid()}")
    writer = gguf.GGUFWriter(aside, base.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    try:
        for module in sorted(factors):
            a, b = factors[module]["A"], factors[module]["B"]
            kind = re.sub(r"^model\.layers\.\d+\.", "", module)
            if base.permute_qk and kind in PERMUTED:
                if b.shape[0] % (2 * heads[PERMUTED[kind]]):
                    raise AdapterRefused(
                        f"{module} has {b.shape[0]} rows, which {heads[PERMUTED[kind]]} heads do not divide; "
                        f"the adapter is not for {base.id}."
                    )
                b = permute_rows(b, heads[PERMUTED[kind]])
            name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
            if name is None:
                raise AdapterRefused(
                    f"{module} has no counterpart in a {base.architecture} GGUF; train other modules."
                )
            writer.add_tensor(f"{name}.lora_a", _float16(a * _rank_fold(config, module, a), module))
            writer.add_tensor(f"{name}.lora_b", _float16(b, module))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        digest = sha256_of(aside)
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    return digest


def require_whole(adapter_dir: Path) -> None:
    """Raise AdapterRefused unless both PEFT files are there and every LoRA pair is complete."""
    _read_config(adapter_dir)
    _read_factors(adapter_dir)


def permute_rows(b: np.ndarray, heads: int) -> np.ndarray:
    """Return lora_B `(out, rank)` with its rows in llama.cpp's rotary order.

    Hugging Face stores each head's rotary pairs as two halves, llama.cpp interleaved: view B as
    `(heads, 2, out/heads/2, rank)`, swap the middle axes, flatten. lora_A is never permuted.
    """
    return b.reshape(heads, 2, b.shape[0] // heads // 2, b.shape[1]).swapaxes(1, 2).reshape(b.shape)


def sha256_of(path: Path) -> str:
    """Return `sha256:` and the 64 lower-case hex digits of a file's digest."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def _read_config(adapter_dir: Path) -> dict[str, Any]:
    try:
        config = json.loads((adapter_dir / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise AdapterRefused("adapter_config.json is missing or not JSON; train the adapter again.") from exc
    if not isinstance(config, dict):
        raise AdapterRefused("adapter_config.json is not an object; train the adapter again.")
    return config


def _refuse_unsupported(config: dict[str, Any]) -> None:
    """Refuse what llama.cpp's adapter loader would reject or, worse, ignore."""
    # `init_lora_weights` may also be False or "gaussian"; these change the base's own weights as well.
    if str(config.get("init_lora_weights")).startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        raise AdapterRefused(
            f"An adapter initialised by {config['init_lora_weights']} fits a changed base, not the served "
            "one. Set init_lora_weights to true and train again."
        )
    reasons = {
        "use_dora": "DoRA's magnitude vectors",
        "modules_to_save": "fully trained modules",
        "trainable_token_indices": "new token embeddings",
        "target_parameters": "expert parameters",
        "lora_bias": "trained biases",
        "layer_replication": "repeated layers",
        "alora_invocation_tokens": "activation by a phrase",
    }
    for key, what in reasons.items():
        if config.get(key):
            raise AdapterRefused(
                f"A GGUF adapter cannot carry {what} ({key}). Switch it off and train again."
            )
    if config.get("bias", "none") != "none":
        raise AdapterRefused(
            "A GGUF adapter cannot carry trained biases (bias). Set bias to none and train again."
        )
    if str(config.get("peft_type", "LORA")).upper() != "LORA":
        raise AdapterRefused(f"Only LoRA adapters can be exported, not {config.get('peft_type')}.")


def _read_factors(adapter_dir: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return {module: {"A": (rank, in), "B": (out, rank)}} in float32."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(adapter_dir / "adapter_model.safetensors")
    except (OSError, SafetensorError) as exc:
        raise AdapterRefused(
            "adapter_model.safetensors is missing or torn; train the adapter again."
        ) from exc
    factors: dict[str, dict[str, np.ndarray]] = {}
    for key, tensor in tensors.items():
        match = _KEY.match(key)
        if match is None or tensor.dim() != 2:
            raise AdapterRefused(f"The adapter holds {key}, which is no LoRA factor of a linear layer.")
        values = tensor.to(torch.float32).numpy()
        if not np.isfinite(values).all():
            raise AdapterRefused(
                f"{match['module']} holds numbers that are not finite; train the adapter again."
            )
        factors.setdefault(match["module"], {})[match["side"]] = values
    if not factors:
        raise AdapterRefused("The adapter holds no LoRA factors.")
    for module, pair in factors.items():
        if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
            raise AdapterRefused(f"{module} lacks one of its two factors or their ranks differ.")
    return factors


def _alpha(config: dict[str, Any]) -> float:
    """Return the file's alpha: the engine divides it by the rank; rsLoRA wants division by its root."""
    try:
        alpha, rank = float(config["lora_alpha"]), int(config["r"])
    except (KeyError, TypeError, ValueError) as exc:
        raise AdapterRefused("adapter_config.json lacks lora_alpha or r; train the adapter again.") from exc
    if not 0 < alpha < math.inf or rank < 1:
        # The loader takes 0 as "scale 1", which is not what the training meant.
        raise AdapterRefused(f"lora_alpha is {alpha:g} and r is {rank}; both must be above 0.")
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def _rank_fold(config: dict[str, Any], module: str, a: np.ndarray) -> float:
    """Return the factor that corrects a module whose own rank or alpha differs from the file's one alpha.

    PEFT's scale is alpha_m/rank_m (or /sqrt(rank_m)); the engine applies file alpha / rank_m.
    """
    rank = a.shape[0]
    alpha = float(_pattern(config.get("alpha_pattern"), module, config["lora_alpha"]))
    wanted = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return float(wanted / (_alpha(config) / rank))


def _pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """Look a module up in PEFT's `alpha_pattern`: a key is a regular expression matching a name's end."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _tensor_names(architecture: str, layers: int) -> Any:
    import gguf

    for arch, name in gguf.MODEL_ARCH_NAMES.items():
        if name == architecture:
            return gguf.get_tensor_name_map(arch, layers)
    raise AdapterRefused(f"The GGUF library knows no architecture {architecture!r}.")


def _float16(values: np.ndarray, module: str) -> np.ndarray:
    if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise AdapterRefused(
            f"{module} holds numbers above 65,504, which float16 cannot carry; the training diverged."
        )
    return values.astype(np.float16)
