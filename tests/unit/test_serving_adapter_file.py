"""The local look into an adapter file: facts of a whole one, one sentence for each way of being wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from serving.adapter_file import inspect_adapter
from tests.adapters import write_adapter
from training.errors import AdapterRefused

SMALL = {"layers": 2, "inputs": 8, "outputs": 6}


@pytest.mark.parametrize("half_precision", [False, True])
def test_whole_adapter_tells_its_facts(tmp_path: Path, half_precision: bool) -> None:
    file = write_adapter(tmp_path / "a.gguf", rank=4, alpha=8.0, half_precision=half_precision, **SMALL)  # type: ignore[arg-type]
    facts = inspect_adapter(file, architecture="llama")
    assert facts.digest == "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    assert (facts.architecture, facts.alpha, facts.rank, facts.tensors) == ("llama", 8.0, 4, 4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"general_type": "model"}, "general.type 'model'"),
        ({"adapter_type": "alora"}, "adapter.type 'alora'"),
        ({"architecture": "qwen2"}, "architecture 'qwen2'"),
        ({"alpha": 0.0}, r"alpha 0\.0"),
        ({"alpha": float("nan")}, "alpha nan"),
        ({"rank": 4, "rank_b": 5}, "ranks 4 and 5"),
        ({"spoil": float("nan")}, "not finite"),
        ({"spoil": float("inf")}, "not finite"),
        ({"layers": 0}, "no tensors"),
    ],
)
def test_wrong_adapter_is_refused_with_its_reason(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    file = write_adapter(tmp_path / "a.gguf", **(SMALL | changes))  # type: ignore[arg-type]
    with pytest.raises(AdapterRefused, match=reason) as error:
        inspect_adapter(file, architecture="llama")
    assert str(tmp_path) not in str(error.value)


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    whole = write_adapter(tmp_path / "a.gguf", **SMALL).read_bytes()  # type: ignore[arg-type]
    cut = tmp_path / "cut.gguf"
    for length in range(0, len(whole), max(1, len(whole) // 97)):
        cut.write_bytes(whole[:length])
        with pytest.raises(AdapterRefused):
            inspect_adapter(cut)


def test_architecture_is_left_to_the_engine_when_not_given(tmp_path: Path) -> None:
    file = write_adapter(tmp_path / "a.gguf", architecture="qwen2", **SMALL)  # type: ignore[arg-type]
    assert inspect_adapter(file).architecture == "qwen2"
