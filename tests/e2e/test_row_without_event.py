"""A row that the app wrote and told nobody of: the minute's dispatcher finds it."""

from __future__ import annotations

from datetime import datetime

import pytest

from store import jobs, users
from store.database import Database
from tests.e2e.stack import Running, wait_for
from training.schemas import Trigger

A_MINUTE_S = 60.0
START_S = 15.0
"""What a worker may take to start the two runs on a busy machine."""


@pytest.mark.slow
def test_row_without_an_event_is_started_within_a_minute(running: Running, db: Database) -> None:
    user = users.create_user(db, "quiet@example.net", consent=True)
    job = jobs.create_job(
        db,
        user.id,
        base_model="smollm2-135m",
        config={},
        lora_rank=16,
        lora_alpha=32,
        trigger=Trigger.APP,
    )
    wait_for(lambda: running.row(job.id).status == "FAILED" or None, "the job to be refused", 180)
    ended = running.job(job.id)
    assert ended["errorCode"] == "NOT_ENOUGH_MAIL"
    run = running.prefect(f"flow_runs/{ended['flowRunId']}")
    started = datetime.fromisoformat(run["start_time"].replace("Z", "+00:00"))
    assert job.created_at is not None
    assert (started - job.created_at).total_seconds() < A_MINUTE_S + START_S
