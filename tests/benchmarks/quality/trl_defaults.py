"""TRL's SFTTrainer with PEFT as its user would run it: every default of both, loss on the reply alone.

What is not a default: completion_only_loss, the length limit of the comparison, and what changes the adapter
by rounding only, to be done in an evening: CPU (in fp32 where its processor emulates bf16), eager attention,
the 8 mails of a step two at a time (david 3.044 nat on held-out mail, 3.039 with the defaults' attention and
batch), no recomputed activations, no saving on the way, no printing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks.quality.measure import BASE_MODEL
from training.base_models import find_base_model, load_tokenizer, weights_path
from training.config import TrainConfig
from training.dataset import EncodedExample
from training.precision import fastest_precision

MAILS_AT_A_TIME = 2
DEFAULT_MAILS = 8
"""SFTConfig's per_device_train_batch_size, with one step of accumulation."""


def train(config: TrainConfig, examples: Sequence[EncodedExample], cache: Path, out: Path) -> dict[str, Any]:
    """Train on the same token ids; saves PEFT files in `out` and returns how it went, as measure.course."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    info = find_base_model(BASE_MODEL)
    half = fastest_precision("cpu") == "bf16"
    model = AutoModelForCausalLM.from_pretrained(
        weights_path(info, cache),
        dtype=torch.bfloat16 if half else torch.float32,
        attn_implementation="eager",
    )
    tokenizer = load_tokenizer(info, cache)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = [
        {
            "input_ids": list(e.input_ids),
            "completion_mask": [int(n >= e.prompt_length) for n in range(len(e.input_ids))],
        }
        for e in examples
    ]
    # Its printing callback writes to standard output, which carries the benchmark's JSON.
    with TemporaryDirectory() as aside, redirect_stdout(sys.stderr):
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=aside,
                max_length=config.max_seq_tokens,
                completion_only_loss=True,
                per_device_train_batch_size=MAILS_AT_A_TIME,
                gradient_accumulation_steps=DEFAULT_MAILS // MAILS_AT_A_TIME,
                gradient_checkpointing=False,
                use_cpu=True,
                bf16=half,
                dataloader_pin_memory=False,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=config.seed,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM"),
        )
        started = time.monotonic()
        done = trainer.train()
        seconds = time.monotonic() - started
        trainer.save_model(str(out))
    used, lora = trainer.args, trainer.model.peft_config["default"]  # type: ignore[union-attr]
    epochs = float(used.num_train_epochs)
    return {
        "steps": done.global_step,
        "best_step": done.global_step,
        "stopped_early": False,
        "epochs": epochs,
        "validation_emails": 0,
        "validation": [],
        "final_train_loss": round(done.training_loss, 5),
        "train_tokens": round(epochs * sum(len(e.input_ids) for e in examples)),
        "train_seconds": round(seconds, 1),
        "learning_rate": used.learning_rate,
        "schedule": used.lr_scheduler_type.value,
        "mails_per_step": used.per_device_train_batch_size * used.gradient_accumulation_steps,
        "rank": lora.r,
        "alpha": lora.lora_alpha,
        "dropout": lora.lora_dropout,
        "target_modules": sorted(lora.target_modules),
    }
