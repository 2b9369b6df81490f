"""What a follower makes of a training's progress: one number in the row, the events and the artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from store import dispatch, jobs, users
from store.database import Database
from tasks import following, progress, tools
from tasks.following import Ended, Following, raise_what_stopped
from tasks.job_folder import CANCEL, ERROR, METRICS, PROGRESS, SPEC
from training.errors import OwnvoiceError, StoreUnavailable, TrainingCancelled
from training.schemas import Job, Stage, TrainingProgress

pytestmark = pytest.mark.usefixtures("prefect")
PRICE = 3.6
"""Dollars an hour: a tenth of a cent a second."""


@pytest.fixture
def job(home: Path, db: Database, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job at its training, with a spec in its folder."""
    monkeypatch.setenv("OWNVOICE_HOURLY_PRICE", str(PRICE))
    monkeypatch.setenv("OWNVOICE_DATABASE_WAIT_S", "1")
    monkeypatch.setattr(progress, "SHOW_EVERY_S", 0.0)
    monkeypatch.setattr(following, "POLL_S", 0.02)
    tools.settings.cache_clear()
    user = users.create_user(db, "anna@example.org", consent=True)
    made = jobs.create_job(db, user.id, base_model="tiny", config={}, lora_rank=8, lora_alpha=16.0)
    dispatch.take_up(db, made.id, str(uuid4()))
    return jobs.enter_stage(db, made.id, Stage.TRAIN)


def write_progress(job: Job, step: int, steps: int, seconds: float, eta_s: float, **fields: Any) -> None:
    now = TrainingProgress(
        step=step,
        steps=steps,
        epoch=1,
        loss=2.5,
        tokens=100 * step,
        tokens_per_second=50,
        eta_seconds=eta_s,
        seconds=seconds,
        **fields,
    )
    tools.job_folder(job.id).write_json(PROGRESS, now.to_json_dict())


def artifact_of(job: Job) -> Any:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    with get_client(sync_client=True) as client:
        (found,) = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[f"progress-{job.id}"]))
        )
    return found


def start_run() -> Any:
    """A flow run that nobody carries out."""
    from prefect.client.orchestration import get_client

    from flows.train_adapters import train_adapters

    with get_client(sync_client=True) as client:
        return client.create_flow_run(
            train_adapters, parameters={"job_ids": [], "base_model": "tiny", "storage_url": "x"}
        ).id


def put_run(run_id: Any, state: Any) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, state, force=True)


def test_row_event_stream_and_artifact_show_the_same_progress_and_cost(db: Database, job: Job) -> None:
    followed = Following(job.id, tools.job_folder(job.id))
    for step, seconds, eta_s in [(1, 10.0, 90.0), (6, 60.0, 40.0), (10, 100.0, 0.0)]:
        write_progress(job, step, 10, seconds, eta_s)
        following._mirror(followed)
        row, event, artifact = jobs.find_job(db, job.id), jobs.events(db, job.id)[-1], artifact_of(job)
        assert row.progress == event.data["progress"] == artifact.data == 30 + 50 * step / 10
        assert row.eta_seconds == event.data["etaSeconds"] == eta_s
        assert row.actual_cost == pytest.approx(event.data["costSoFar"]) == pytest.approx(seconds / 1000)
        assert (
            f"{eta_s:.0f} s left" in artifact.description and f"${seconds / 1000:.4f}" in artifact.description
        )


def test_reference_adapters_are_told_of_and_are_no_progress_of_the_job(db: Database, job: Job) -> None:
    followed = Following(job.id, tools.job_folder(job.id))
    write_progress(job, 9, 10, 20.0, 30.0, phase="panel", reference=2, references=4)
    following._mirror(followed)
    row, event = jobs.find_job(db, job.id), jobs.events(db, job.id)[-1]
    assert row.progress == 30 and row.eta_seconds == 30.0
    assert (event.data["phase"], event.data["reference"], event.data["references"]) == ("panel", 2, 4)
    assert artifact_of(job).description.startswith("reference adapter 2 of 4: step 9 of 10")
    write_progress(job, 1, 10, 25.0, 90.0)
    following._mirror(followed)
    assert jobs.find_job(db, job.id).progress == 35


def test_seconds_that_pass_without_a_step_cost_money_and_are_no_event(db: Database, job: Job) -> None:
    followed = Following(job.id, tools.job_folder(job.id))
    before = len(jobs.events(db, job.id))
    for phase, seconds in [("train", 10.0), ("held_out", 11.0), ("held_out", 12.0), ("held_out", 14.0)]:
        write_progress(job, 10, 10, seconds, 0.0, phase=phase)
        following._mirror(followed)
    told = [event.data["phase"] for event in jobs.events(db, job.id)[before:]]
    assert told == ["train", "held_out"]
    assert jobs.find_job(db, job.id).actual_cost == pytest.approx(0.014)


def test_next_stage_forgets_the_time_left_and_keeps_the_cost(db: Database, job: Job) -> None:
    write_progress(job, 5, 10, 50, 50)
    following._mirror(Following(job.id, tools.job_folder(job.id)))
    after = jobs.enter_stage(db, job.id, Stage.EVALUATE)
    assert after.eta_seconds is None and after.actual_cost == pytest.approx(0.05)


def test_each_job_of_a_run_is_over_as_soon_as_its_own_part_is(db: Database, job: Job) -> None:
    run_id, folder = start_run(), tools.job_folder(job.id)
    ended = following.follow(run_id, [job.id])
    folder.write_json(METRICS, {})
    (only,) = list(ended)
    assert only == Ended(job.id), "the run itself has not ended"
    raise_what_stopped(only)


def test_error_of_the_gpu_side_is_raised_under_its_own_code(job: Job) -> None:
    tools.job_folder(job.id).write_json(ERROR, {"code": "TRAINING_DIVERGED", "message": "at step 7"})
    with pytest.raises(OwnvoiceError, match="at step 7") as caught:
        raise_what_stopped(Ended(job.id))
    assert caught.value.code == "TRAINING_DIVERGED"


def test_run_whose_process_died_is_told_from_one_that_failed(job: Job) -> None:
    from prefect.states import Crashed, Failed

    for state, lost in [(Crashed(), True), (Failed(), False)]:
        run_id = start_run()
        put_run(run_id, state)
        (ended,) = list(following.follow(run_id, [job.id]))
        assert ended.lost is lost
        with pytest.raises(OwnvoiceError, match="ownvoice retry"):
            raise_what_stopped(ended)


def test_cancel_reaches_the_training_and_its_run(
    db: Database, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that hears of it says so itself; a deaf one has its run cancelled and is left to itself."""
    from prefect.client.orchestration import get_client
    from prefect.states import Running

    monkeypatch.setattr(following, "CANCEL_GRACE_S", 0.1)
    run_id, folder = start_run(), tools.job_folder(job.id)
    put_run(run_id, Running())
    jobs.request_cancel(db, job.id)
    (ended,) = list(following.follow(run_id, [job.id]))
    assert folder.exists(CANCEL)
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(run_id).state.is_cancelling(), "its machine is gone: nobody stops it"
    with pytest.raises(TrainingCancelled):
        raise_what_stopped(ended)


def test_cancelled_job_of_a_cohort_ends_without_waiting_for_its_turn(
    db: Database, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client

    monkeypatch.setattr(following, "CANCEL_GRACE_S", 0.1)
    ben = users.create_user(db, "ben@example.org", consent=True)
    other = jobs.create_job(db, ben.id, base_model="tiny", config={}, lora_rank=8, lora_alpha=16.0)
    run_id = start_run()
    jobs.request_cancel(db, job.id)
    ended = following.follow(run_id, [job.id, other.id])
    assert next(ended).job_id == job.id
    with get_client(sync_client=True) as client:
        assert not client.read_flow_run(run_id).state.is_final()
    tools.job_folder(other.id).write_json(METRICS, {})
    assert next(ended).job_id == other.id


def test_training_that_finds_its_folder_gone_leaves_it_gone(job: Job, tmp_path: Path) -> None:
    from tasks.train import train_job

    result = train_job(job.id, str(tmp_path / "storage"))
    assert (result.ok, result.error_code) == (False, "CANCELLED")
    assert not tools.job_folder(job.id).exists(ERROR) and not tools.job_folder(job.id).exists(SPEC)


def test_database_that_is_away_for_a_moment_does_not_stop_the_follower(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWNVOICE_DATABASE_WAIT_S", "30")
    tools.settings.cache_clear()
    away = iter([True, True, True])
    real = jobs.is_cancel_requested

    def now_and_then(db: Database, job_id: str) -> bool:
        if next(away, False):
            raise StoreUnavailable("PostgreSQL does not answer.")
        tools.job_folder(job_id).write_json(METRICS, {})
        return real(db, job_id)

    monkeypatch.setattr(following.jobs, "is_cancel_requested", now_and_then)
    (ended,) = list(following.follow(start_run(), [job.id]))
    assert ended.job_id == job.id
