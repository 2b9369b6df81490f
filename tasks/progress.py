"""What people see in the Prefect UI: a server that is away costs the picture, never the work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_logger

from training.schemas import Job

SHOW_EVERY_S = 3.0
"""Each update is a call to the Prefect server."""
_shown: dict[str, tuple[UUID, float]] = {}
"""Job id → its progress artifact in this process, and when it was last updated."""


@contextmanager
def not_essential(what: str) -> Iterator[None]:
    """Go on without `what` when the Prefect server cannot be told."""
    try:
        yield
    except (httpx.HTTPError, PrefectHTTPStatusError) as exc:
        get_logger("ownvoice").warning("%s is not in the Prefect UI: %s", what, type(exc).__name__)


def show_progress(job: Job, text: str, *, now: bool = True) -> None:
    """Show the job's percent, as its row has it, in the artifact `progress-<job id>`.

    `now=False` leaves out updates that come faster than one in `SHOW_EVERY_S`.
    """
    artifact, shown_at = _shown.get(job.id, (None, 0.0))
    if not now and time.monotonic() - shown_at < SHOW_EVERY_S:
        return
    with not_essential("The progress"):
        if artifact is None:
            artifact = create_progress_artifact(
                progress=job.progress, key=f"progress-{job.id}", description=text
            )
        else:
            update_progress_artifact(artifact, progress=job.progress, description=text)
        _shown[job.id] = (artifact, time.monotonic())
