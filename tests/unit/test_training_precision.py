"""bf16 where the processor has it, fp32 where it would be emulated."""

from __future__ import annotations

import pytest

from tests.bases import tiny_base_model
from training import precision
from training.config import TrainConfig, load_train_config
from training.memory import plan_memory
from training.precision import fastest_precision, has_bf16_instructions, settle_precision

AVX2 = "processor : 0\nflags\t\t: fpu sse2 avx avx2 f16c\n"
AVX512 = "processor : 0\nflags\t\t: fpu sse2 avx2 avx512f avx512_bf16\n"
ARM = "processor : 0\nFeatures\t: fp asimd bf16 i8mm\n"


@pytest.mark.parametrize(
    ("info", "has"), [(AVX2, False), (AVX512, True), (ARM, True), (AVX512 + AVX2, False), ("", False)]
)
def test_the_processor_says_whether_it_multiplies_bf16(info: str, has: bool) -> None:
    assert has_bf16_instructions(info) is has


def test_auto_is_bf16_where_it_is_not_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "processor_has_bf16", lambda: False)
    assert (fastest_precision("cpu"), fastest_precision("cuda")) == ("fp32", "bf16")
    monkeypatch.setattr(precision, "processor_has_bf16", lambda: True)
    assert fastest_precision("cpu") == "bf16"


def test_a_precision_that_is_asked_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "processor_has_bf16", lambda: False)
    assert settle_precision(TrainConfig(precision="bf16"), "cpu").precision == "bf16"
    assert settle_precision(load_train_config("default"), "cpu").precision == "fp32"


def test_the_memory_of_auto_is_that_of_the_precision_it_becomes(monkeypatch: pytest.MonkeyPatch) -> None:
    dimensions = tiny_base_model().dimensions
    monkeypatch.setattr(precision, "processor_has_bf16", lambda: False)
    auto = plan_memory(dimensions, TrainConfig(), kind="cpu")
    assert auto == plan_memory(dimensions, TrainConfig(precision="fp32"), kind="cpu")
    assert auto.weights == 2 * plan_memory(dimensions, TrainConfig(precision="bf16"), kind="cpu").weights
