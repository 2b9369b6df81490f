"""What llama.cpp adds to each matrix of a tiny base from our GGUF is what PEFT adds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file

from tests.adapters import MODULE_NAMES, head_order_loop, write_peft_adapter
from tests.bases import TINY_HEADS, TINY_KV_HEADS, TINY_LAYERS, tiny_base, tiny_base_model
from training.config import LINEAR_LAYERS
from training.export import export_gguf

HEADS_OF = {"attn_q": TINY_HEADS, "attn_k": TINY_KV_HEADS}
BASE_CONFIG = {
    "num_attention_heads": TINY_HEADS,
    "num_key_value_heads": TINY_KV_HEADS,
    "num_hidden_layers": TINY_LAYERS,
}


def adapted(**changes: Any) -> PeftModel:
    """Return a tiny base with random factors everywhere."""
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 12, "target_modules": list(LINEAR_LAYERS)}
    torch.manual_seed(3)
    return get_peft_model(  # type: ignore[return-value]
        tiny_base().model,
        LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **(settings | changes)),
        autocast_adapter_dtype=False,
    )


def delta_weights(path: Path) -> dict[str, np.ndarray]:
    """Return what llama.cpp adds to each base matrix, rows put back in Hugging Face order."""
    reader = gguf.GGUFReader(path)
    alpha = reader.get_field("adapter.lora.alpha").contents()  # type: ignore[union-attr]
    tensors = {tensor.name: tensor.data.astype(np.float32) for tensor in reader.tensors}
    found = {}
    for name in {re.sub(r"\.lora_[ab]$", "", name) for name in tensors}:
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        delta = alpha / b.shape[1] * (b @ a)
        kind = name.split(".")[2]
        if kind in HEADS_OF:
            back = np.empty_like(delta)
            back[head_order_loop(delta.shape[0], HEADS_OF[kind])] = delta
            delta = back
        found[name] = delta
    return found


def expected_deltas(model: PeftModel) -> dict[str, np.ndarray]:
    found = {}
    for name, module in model.get_base_model().named_modules():
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        if match and match[2] in MODULE_NAMES and hasattr(module, "get_delta_weight"):
            delta = module.get_delta_weight("default").detach().float().numpy()  # type: ignore[operator]
            found[f"blk.{match[1]}.{MODULE_NAMES[match[2]]}.weight"] = delta
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora_alpha": 3},
        {"lora_alpha": 2.5},
        {"use_rslora": True},
        {"alpha_pattern": {"q_proj": 40, "layers.1.mlp.up_proj": 1}},
        {"rank_pattern": {"k_proj": 2, r"layers\.1\.self_attn\.v_proj": 7}},
        {"rank_pattern": {"k_proj": 2, "down_proj": 8}, "alpha_pattern": {"k_proj": 5}, "use_rslora": True},
        {"target_modules": ["q_proj", "v_proj"]},
    ],
    ids=lambda changes: "+".join(changes) or "plain",
)
def test_what_the_engine_adds_is_what_peft_adds(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = adapted(**changes)
    model.save_pretrained(str(tmp_path / "adapter"))
    expected = expected_deltas(model)
    export_gguf(tmp_path / "adapter", tiny_base_model(), BASE_CONFIG, tmp_path / "adapter.gguf")
    found = delta_weights(tmp_path / "adapter.gguf")
    assert found.keys() == expected.keys() and len(found) > 0
    for name, delta in found.items():
        # float16 factors: 2^-11 of each factor's size, summed over the rank.
        np.testing.assert_allclose(delta, expected[name], atol=2e-3 * np.abs(expected[name]).max())


def test_the_files_that_other_tests_write_by_hand_are_laid_out_as_pefts_own(tmp_path: Path) -> None:
    adapted().save_pretrained(str(tmp_path / "theirs"))
    ours = write_peft_adapter(tmp_path / "ours")
    shapes = [
        {name: tensor.shape for name, tensor in load_file(folder / "adapter_model.safetensors").items()}
        for folder in (ours, tmp_path / "theirs")
    ]
    assert shapes[0] == shapes[1]
    mine, theirs = (json.loads((f / "adapter_config.json").read_text()) for f in (ours, tmp_path / "theirs"))
    assert sorted(mine.pop("target_modules")) == sorted(theirs["target_modules"])
    assert mine.items() <= theirs.items()
