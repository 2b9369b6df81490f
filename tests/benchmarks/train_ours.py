"""Child of the training benchmark: one epoch with our trainer, as a job does it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks.child import Report, serve
from tests.benchmarks.step_clock import StepClock
from tests.benchmarks.train_data import CACHE, read_examples


def _train(request: dict[str, Any], report: Report) -> dict[str, Any]:
    from training.base_models import find_base_model
    from training.config import load_train_config
    from training.dataset import EncodedExample
    from training.loaded_base import load_base
    from training.lora import train_adapter
    from training.schemas import TrainingProgress

    work = Path(request["work"])
    limit = {"max_steps": 4} if request["quick"] else {}
    config = load_train_config(request["preset"], {"epochs": 1, **limit})
    examples = [
        EncodedExample(e["id"], e["thread_id"], tuple(e["input_ids"]), e["prompt_length"])
        for e in read_examples(work)
    ]
    report(0, 1, "loading")
    base = load_base(find_base_model(request["base_model"]), work / CACHE, config)
    clock = StepClock()

    def on_progress(now: TrainingProgress) -> None:
        clock.step_done(now.tokens)
        report(now.step, now.steps, f"step {now.step} of {now.steps}")

    with TemporaryDirectory(dir=work) as out:
        # A folder of its own: a checkpoint of the round before would be resumed.
        clock.start()
        result = train_adapter(config, examples, base, Path(out), on_progress=on_progress)
    return {**clock.figures(), "loss": round(result.final_train_loss, 4), "device": result.device}


if __name__ == "__main__":
    serve(_train)
