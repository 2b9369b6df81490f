"""`metrics.json`: what the GPU side measured of a finished training, as the CPU side reads it."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.job_folder import METRICS, JobFolder
from training.errors import StorageError
from training.schemas import MeasuredLosses, TrainingResult


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
