"""What a finished training says of itself, where a test needs one and trains nothing."""

from __future__ import annotations

from training.schemas import TrainingResult

FINISHED = TrainingResult(
    adapter_dir="adapter",
    steps=6,
    epochs=1,
    train_tokens=4000,
    train_seconds=10,
    train_tokens_per_second=400,
    final_train_loss=3.1,
    loss_curve=((1, 4.0), (6, 3.1)),
    trainable_parameters=1000,
    peak_memory_bytes=1,
    device="cpu",
)
