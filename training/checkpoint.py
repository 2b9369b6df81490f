"""What must survive a crash, written whole or not at all, and whether it fits the run that finds it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from training import base_models
from training.config import NOT_IN_RECIPE, TrainConfig
from training.dataset import EncodedExample
from training.device import random_state, restore_random_state
from training.early_stop import EarlyStop
from training.flat_parameters import FlatParameters
from training.weight_average import WeightAverage

CHECKPOINT_FILE = "state.pt"


def fingerprint(
    config: TrainConfig,
    examples: Sequence[EncodedExample],
    info: base_models.BaseModel,
    start_digest: str | None = None,
) -> str:
    """Return what a checkpoint must match to be resumed: the base, the adapter that training went on from,
    the recipe and the exact token ids."""
    import hashlib

    digest = hashlib.sha256(config.model_dump_json(exclude=NOT_IN_RECIPE).encode())
    # Two bases may share a tokenizer (Llama-3.1-8B and -70B do), so the token ids do not tell them apart.
    digest.update(repr((info.id, info.revision)).encode())
    digest.update((start_digest or "").encode())
    for example in examples:
        digest.update(repr((example.input_ids, example.prompt_length, example.masked)).encode())
    return digest.hexdigest()


class RunState:
    """What must survive a crash: master weights, optimiser, random state, losses, the early stop with its
    best weights, the mean of the weights, tokens and seconds."""

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        early: EarlyStop,
        average: WeightAverage | None,
        trainers: int = 1,
    ) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.early = early
        self.average = average
        self.trainers = trainers
        self.losses: list[float] = []
        self.step = 0
        """Steps done: their loss may still be on its way from the GPU."""
        self.tokens = 0
        """Tokens trained on."""
        self.seconds = 0.0
        """Seconds of training before this session."""
        self.device_seconds = 0.0
        """Of them this training's part, where several trainers shared the device then."""
        self._random = random_state()

    def step_done(self, tokens: int) -> None:
        """Count a step, and keep the random state that the next one starts from: a step that is interrupted
        is done again and must draw the same dropout."""
        self.step += 1
        self.tokens += tokens
        self._random = random_state()

    def resume(self, weights: FlatParameters, optimiser: torch.optim.Optimizer) -> int:
        """Load the checkpoint when it fits; returns the step to go on from, 0 without one."""
        path = self.folder / CHECKPOINT_FILE
        if not path.is_file():
            return 0
        try:
            saved = torch.load(path, map_location=weights.master.device, weights_only=True)
        except Exception:
            # Torn or foreign file: starting over is always right, only slower.
            return 0
        if not isinstance(saved, dict) or saved.get("fingerprint") != self.fingerprint:
            return 0
        with torch.no_grad():
            weights.master.copy_(saved["master"])
        weights.copy_to_working()
        optimiser.load_state_dict(saved["optimiser"])
        restore_random_state(saved["random_state"])
        self._random = random_state()
        self.early.restore(saved["early"])
        if self.average is not None:
            self.average.mean = saved["average"]
        self.losses = list(saved["losses"])
        self.step, self.tokens, self.seconds = int(saved["step"]), saved["tokens"], saved["seconds"]
        self.device_seconds = saved.get("device_seconds", self.seconds)
        return self.step

    def save(self, session_seconds: float, weights: FlatParameters, optimiser: torch.optim.Optimizer) -> None:
        """Write the checkpoint beside the old one and rename over it, so that one is always whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / CHECKPOINT_FILE
        with _written_aside(path) as aside:
            torch.save(
                {
                    "fingerprint": self.fingerprint,
                    "step": self.step,
                    "master": weights.master.detach(),
                    "optimiser": optimiser.state_dict(),
                    "random_state": self._random,
                    "early": self.early.state(),
                    "average": None if self.average is None else self.average.mean,
                    "losses": self.losses,
                    "tokens": self.tokens,
                    "seconds": self.seconds + session_seconds,
                    "device_seconds": self.device_seconds + session_seconds / self.trainers,
                },
                aside,
            )


@contextmanager
def _written_aside(path: Path) -> Iterator[Path]:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        with aside.open("rb") as handle:
            os.fsync(handle.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
