"""Child of the training benchmarks: our trainer on one person, or several one after another on one base.

Request: `people` ({"name", "work"} each), `cache`, `base_model`, `preset`, `epochs`, `max_steps` (or null);
and, for a trainer that keeps to one core, `core` (null where the system cannot pin) and `threads`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks.child import Report, serve
from tests.benchmarks.step_clock import StepClock
from tests.benchmarks.train_data import read_encoded


def _train(request: dict[str, Any], report: Report) -> dict[str, Any]:
    # Before torch is imported: its thread pool takes the processors that it finds.
    if request.get("core") is not None:
        os.sched_setaffinity(0, {request["core"]})
    import torch

    from training.base_models import find_base_model
    from training.config import load_train_config
    from training.loaded_base import load_base
    from training.lora import train_adapter
    from training.schemas import TrainingProgress

    if request.get("threads"):
        torch.set_num_threads(request["threads"])
    # Every trainer gets all examples and takes all steps: no validation slice.
    overrides = {"epochs": request["epochs"], "max_steps": request["max_steps"], "validation_fraction": 0}
    config = load_train_config(request["preset"], overrides)
    people = request["people"]
    report(0, len(people), "loading")
    base = load_base(find_base_model(request["base_model"]), Path(request["cache"]), config)
    embedding = base.model.get_input_embeddings()
    trained = []
    for number, person in enumerate(people):
        examples = read_encoded(Path(person["work"]))
        clock = StepClock()
        clock.watch_inputs(embedding)

        def on_progress(now: TrainingProgress, clock: StepClock = clock, before: int = number) -> None:
            clock.step_done(now.tokens)
            text = f"step {now.step} of {now.steps}"
            report(before + now.step / now.steps, len(people), text)

        started = time.perf_counter()
        with TemporaryDirectory(dir=person["work"]) as out:
            # A folder of its own: a checkpoint of the round before would be resumed.
            clock.start()
            result = train_adapter(config, examples, base, Path(out), on_progress=on_progress)
        trained.append(
            {
                "name": person["name"],
                **clock.figures(),
                "all_seconds": round(time.perf_counter() - started, 2),
                "loss": round(result.final_train_loss, 4),
            }
        )
    return {
        "people": trained,
        "device": result.device,
        "threads": torch.get_num_threads(),
        "parameters": _multiplied(base.model),
    }


def _multiplied(model: Any) -> int:
    """Return how many weights a token is multiplied with: all, but of the input embedding only when it is the
    output matrix too."""
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    all_weights = sum(int(parameter.numel()) for parameter in model.parameters())
    return all_weights - (0 if embedding.weight is output.weight else int(embedding.weight.numel()))


if __name__ == "__main__":
    serve(_train)
