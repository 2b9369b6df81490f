"""What the CPU side reads of a finished training: what estimates rest on, and what is paid."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.job_folder import METRICS, JobFolder
from tasks.measured import read_measured
from tests.trainings import FINISHED
from training.schemas import ArmLosses, MeasuredLosses


@pytest.mark.parametrize(("panel", "paid"), [({"panelSeconds": 60.0}, 72.0), ({}, 12.0)])
def test_reference_adapters_are_paid_for_and_are_no_measure_of_the_next_job(
    tmp_path: Path, panel: dict[str, float], paid: float
) -> None:
    folder = JobFolder(str(tmp_path), "first")
    losses = MeasuredLosses(base=ArmLosses(), candidate=ArmLosses())
    folder.write_json(
        METRICS,
        {
            "training": FINISHED.to_json_dict(),
            "losses": losses.to_json_dict(),
            "adapterDigest": "sha256:0",
            "gpuSeconds": 12.0,
            **panel,
        },
    )
    measured = read_measured(folder)
    assert (measured.device_seconds, measured.paid_seconds) == (12.0, paid)
