"""PEFT → GGUF on a tiny base: names, rows, scales, and what is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from serving.adapter_file import inspect_adapter
from tests.adapters import MODULE_NAMES, head_order_loop, write_peft_adapter
from tests.bases import TINY_HEADS, TINY_KV_HEADS, TINY_LAYERS, tiny_base_model
from training.errors import AdapterRefused
from training.export import export_gguf, permute_rows, sha256_of

BASE = tiny_base_model()
BASE_CONFIG = {
    "num_attention_heads": TINY_HEADS,
    "num_key_value_heads": TINY_KV_HEADS,
    "num_hidden_layers": TINY_LAYERS,
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return write_peft_adapter(tmp_path / "adapter")


def export(folder: Path, **changes: Any) -> Path:
    out = folder.parent / "adapter.gguf"
    export_gguf(folder, tiny_base_model(**changes), BASE_CONFIG, out)
    return out


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


# ---- rows and names --------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "width", "rank"), [(1, 2, 1), (9, 64, 16), (3, 64, 4), (2, 6, 5)])
def test_rows_are_permuted_as_the_rotary_pairs_are(heads: int, width: int, rank: int) -> None:
    b = np.random.default_rng(1).standard_normal((heads * width, rank))
    expected = np.stack([b[row] for row in head_order_loop(heads * width, heads)])
    assert np.array_equal(permute_rows(b, heads), expected)


def test_rows_agree_with_the_converter_of_the_base() -> None:
    # llama.cpp's own formula for a base matrix (convert_hf_to_gguf.py, LlamaModel.permute).
    weights = np.arange(48.0).reshape(24, 2)
    converter = weights.reshape(3, 2, 24 // 3 // 2, 2).swapaxes(1, 2).reshape(24, 2)
    assert np.array_equal(permute_rows(weights, 3), converter)


def test_every_module_has_its_pair_and_the_serving_side_accepts_the_file(saved: Path) -> None:
    out = export(saved)
    inspect_adapter(out)
    names = {tensor.name for tensor in gguf.GGUFReader(out).tensors}
    assert names == {
        f"blk.{layer}.{name}.weight.lora_{side}"
        for layer in range(TINY_LAYERS)
        for name in MODULE_NAMES.values()
        for side in "ab"
    }


def test_the_digest_is_the_files(saved: Path) -> None:
    out = saved.parent / "adapter.gguf"
    digest = export_gguf(saved, BASE, BASE_CONFIG, out)
    assert digest == sha256_of(out)
    assert re.fullmatch("sha256:[0-9a-f]{64}", digest)
    assert export_gguf(saved, BASE, BASE_CONFIG, out) == digest


def test_a_base_that_was_not_permuted_keeps_its_rows(saved: Path) -> None:
    weights = load_file(saved / "adapter_model.safetensors")
    b = weights["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    kept = {t.name: t.data for t in gguf.GGUFReader(export(saved, permute_qk=False)).tensors}
    assert np.array_equal(kept["blk.0.attn_q.weight.lora_b"], b.astype(np.float16))
    moved = {t.name: t.data for t in gguf.GGUFReader(export(saved)).tensors}
    assert not np.array_equal(moved["blk.0.attn_q.weight.lora_b"], b.astype(np.float16))


# ---- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "fully trained modules"),
        ({"bias": "all"}, "trained biases"),
        ({"lora_bias": True}, "trained biases"),
        ({"trainable_token_indices": [1, 2]}, "token embeddings"),
        ({"target_parameters": ["experts"]}, "expert"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "repeated layers"),
        ({"alora_invocation_tokens": [1]}, "phrase"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"lora_alpha": math.nan}, "lora_alpha is nan"),
        ({"lora_alpha": None}, "lacks lora_alpha"),
        ({"r": 0}, "r is 0"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_an_adapter_that_the_file_cannot_carry_is_refused(
    saved: Path, changes: dict[str, Any], message: str
) -> None:
    change_config(saved, **changes)
    with pytest.raises(AdapterRefused, match=message):
        export(saved)
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]


Q_B = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"


def spoil(value: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[Q_B][3, 1] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil(math.nan), "layers.1.self_attn.q_proj holds numbers that are not finite"),
        (spoil(-math.inf), "not finite"),
        (spoil(70_000.0), "above 65,504"),
        (lambda tensors: tensors.pop(Q_B), "layers.1.self_attn.q_proj lacks one of its two factors"),
        (lambda tensors: tensors.update({Q_B: tensors[Q_B][:, :2].copy()}), "ranks differ"),
        (lambda tensors: tensors.update({Q_B: tensors[Q_B][:30]}), "30 rows"),
        (
            lambda tensors: tensors.update({Q_B.replace("lora_B", "lora_C"): np.ones((2, 2), np.float32)}),
            "no LoRA factor",
        ),
        (lambda tensors: tensors.update({Q_B: np.ones((2, 2, 2), np.float32)}), "no LoRA factor"),
        (
            lambda tensors: tensors.update(
                {
                    f"base_model.model.model.layers.0.odd.lora_{s}.weight": np.ones((2, 2), np.float32)
                    for s in "AB"
                }
            ),
            "layers.0.odd has no counterpart",
        ),
        (lambda tensors: tensors.clear(), "no LoRA factors"),
    ],
)
def test_factors_that_would_break_the_engine_are_refused(
    saved: Path, change: Callable[[dict[str, np.ndarray]], None], message: str
) -> None:
    change_weights(saved, change)
    with pytest.raises(AdapterRefused, match=message):
        export(saved)
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]


def test_a_torn_or_missing_weights_file_is_refused(saved: Path) -> None:
    weights = saved / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(AdapterRefused, match="missing or torn"):
        export(saved)
    weights.unlink()
    with pytest.raises(AdapterRefused, match="missing or torn"):
        export(saved)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_broken_configuration_is_refused(saved: Path, text: str | None) -> None:
    path = saved / "adapter_config.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(AdapterRefused, match=r"adapter_config\.json"):
        export(saved)


def test_an_architecture_that_gguf_does_not_know_is_refused(saved: Path) -> None:
    with pytest.raises(AdapterRefused, match="marsupilami"):
        export(saved, architecture="marsupilami")


def test_a_failed_export_keeps_the_file_of_the_last_good_one(saved: Path) -> None:
    digest = sha256_of(export(saved))
    change_weights(saved, spoil(math.nan))
    with pytest.raises(AdapterRefused):
        export(saved)
    assert sha256_of(saved.parent / "adapter.gguf") == digest
