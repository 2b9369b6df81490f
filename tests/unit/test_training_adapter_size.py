"""An adapter's size is known before training, and is what the file really has."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.data import data_report_markdown
from training.adapter_size import adapter_bytes, describe_adapter_size
from training.base_models import find_base_model
from training.config import load_train_config
from training.schemas import DataReport, Estimate

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("base", "preset", "modules", "expected", "said"),
    [
        # SmolLM2-135M: PEFT counts 4,884,480 trainable numbers at rank 16.
        ("smollm2-135m", "default", ALL, 2 * 4_884_480, "9.8 MB"),
        ("llama-3.1-8b", "llama-3.1-8b", ALL, 2 * 41_943_040, "84 MB"),
        ("llama-3.1-8b", "llama-3.1-8b", ["q_proj", "v_proj"], 2 * 6_815_744, "14 MB"),
        ("llama-3.3-70b", "llama-3.3-70b", ALL, 2 * 207_093_760, "414 MB"),
        ("llama-3.3-70b", "llama-3.3-70b", ["q_proj", "v_proj"], 2 * 32_768_000, "66 MB"),
    ],
)
def test_the_size_that_is_promised(
    base: str, preset: str, modules: list[str], expected: int, said: str
) -> None:
    config = load_train_config(preset, {"lora": {"target_modules": modules}})
    assert adapter_bytes(find_base_model(base), config) == expected
    assert describe_adapter_size(expected) == said


def test_the_report_shows_it_before_training() -> None:
    estimate = Estimate(seconds=60, tokens=9000, cost=0, tokens_per_second=150, adapter_bytes=9_768_960)
    fields: dict[str, Any] = {
        name: 0 for name, field in DataReport.model_fields.items() if field.is_required()
    }
    report = DataReport.model_construct(
        **{**fields, "dropped": {}, "estimate": estimate, "reason": "Enough."}
    )
    assert "adapter about 9.8 MB." in data_report_markdown(report)
