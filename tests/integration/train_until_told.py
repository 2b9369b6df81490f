"""A process that trains on the tiny base until it is told to end; the other side of test_training_killed.py.

Use: python -m tests.integration.train_until_told FOLDER WAY EVERY_STEPS; WAY is `plain`, `prefect` (under
Prefect's own SIGTERM handler) or `thread` (training in a thread, where no signal arrives). Prints each step.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from tests.bases import tiny_base, tiny_examples
from training.config import LoraConfig, TrainConfig
from training.lora import train_adapter
from training.schemas import TrainingProgress

CONFIG = TrainConfig(
    precision="fp32",
    epochs=4,
    batch_tokens=64,
    learning_rate=5e-3,
    validation_fraction=0.25,
    min_validation=3,
    checkpoint_every_s=3600,
    lora=LoraConfig(rank=4, alpha=8, dropout=0.2),
)
MAILS = tiny_examples(24)


def train(folder: Path, every_steps: int) -> None:
    def on_progress(progress: TrainingProgress) -> None:
        print("step", progress.step, flush=True)
        time.sleep(0.1)

    config = CONFIG.model_copy(update={"checkpoint_every_steps": every_steps or None})
    train_adapter(config, MAILS, tiny_base(), folder, on_progress=on_progress)


def main(folder: str, way: str, every_steps: str) -> None:
    if way == "prefect":
        from prefect.utilities.engine import capture_sigterm

        with capture_sigterm():
            train(Path(folder), int(every_steps))
    elif way == "thread":
        thread = threading.Thread(target=train, args=(Path(folder), int(every_steps)))
        thread.start()
        thread.join()
    else:
        train(Path(folder), int(every_steps))
    print("finished", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
