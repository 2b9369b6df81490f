"""`metrics.json`: what the GPU side measured of a finished training, as the CPU side reads it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tasks.job_folder import METRICS, JobFolder
from training.errors import StorageError
from training.schemas import JobMetrics, MailLoss, MeasuredLosses, TrainingResult
from training.skill import mean_loss

CURVE_POINTS = 60
"""Of a loss curve in the job row: as many as a small plot shows."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Measured:
    """The numbers of one training."""

    training: TrainingResult
    losses: MeasuredLosses
    adapter_digest: str
    device_seconds: float
    """For which the device was at work on the job."""
    load_seconds: float
    """Reading the base model."""
    trainers: int = 1
    """Trainers that shared the device."""
    panel_seconds: float = 0
    """Besides: training the reference adapters, by the first job of a base on a machine."""

    @property
    def paid_seconds(self) -> float:
        """What the job is charged for; estimates rest on `device_seconds`, which every job has alike."""
        return self.device_seconds + self.panel_seconds


def is_measured(folder: JobFolder) -> bool:
    """Tell whether the training is finished and measured in all that the gate decides by.

    Versions before the full gate measured held-out losses alone (`heldOut` in the place of `losses`).
    """
    return folder.exists(METRICS) and "losses" in folder.read_json(METRICS)


def read_measured(folder: JobFolder) -> Measured:
    """Read the numbers. Raises StorageError when an earlier version wrote them."""
    found = folder.read_json(METRICS)
    if "losses" not in found:
        raise StorageError(
            f"{METRICS} of job {folder.job_id} is of an earlier version, which measured less than the gate "
            f"decides by. Run `ownvoice retry {folder.job_id}`: training goes on from its checkpoint."
        )
    return Measured(
        training=TrainingResult.model_validate(found["training"]),
        losses=MeasuredLosses.model_validate(found["losses"]),
        adapter_digest=str(found["adapterDigest"]),
        device_seconds=float(found["gpuSeconds"]),
        load_seconds=float(found.get("loadSeconds", 0)),
        trainers=int(found.get("trainers", 1)),
        panel_seconds=float(found.get("panelSeconds", 0)),
    )


def training_metrics(measured: Measured) -> JobMetrics:
    """Return what the row says of a finished training, whatever the gate will say of its adapter."""
    training, losses = measured.training, measured.losses
    current = _mean(losses.current.held_out) if losses.current else None
    return JobMetrics(
        held_out_nll_base=_mean(losses.base.held_out),
        held_out_nll_adapter=_mean(losses.candidate.held_out),
        held_out_nll_current=current,
        held_out_emails=len(losses.candidate.held_out),
        held_out_tokens=sum(loss.tokens for loss in losses.candidate.held_out),
        train_tokens=training.train_tokens,
        train_tokens_per_second=round(training.train_tokens_per_second, 1),
        train_seconds=round(training.train_seconds, 2),
        device_seconds=measured.device_seconds,
        load_seconds=measured.load_seconds,
        trainers=measured.trainers,
        steps=training.steps,
        epochs=training.epochs,
        final_train_loss=round(training.final_train_loss, 4),
        peak_memory_bytes=training.peak_memory_bytes,
        device=training.device,
        loss_curve=_rounded(thinned(training.loss_curve, CURVE_POINTS)),
        validation_curve=_rounded(thinned(training.validation_curve, CURVE_POINTS)),
    )


def thinned(points: Sequence[_T], most: int) -> tuple[_T, ...]:
    """Return at most `most` of the points, evenly apart, the first and the last among them."""
    if len(points) <= most:
        return tuple(points)
    return tuple(points[round(place * (len(points) - 1) / (most - 1))] for place in range(most))


def _rounded(points: Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    # NaN is no JSON, and PostgreSQL refuses it.
    return tuple((step, round(loss, 4)) for step, loss in points if math.isfinite(loss))


def _mean(losses: Iterable[MailLoss]) -> float | None:
    mean = mean_loss(losses)
    return round(mean, 4) if math.isfinite(mean) else None
