"""How many trainers a cohort gets: one per core, or this process alone."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks import tools, trainer_process, trainers
from tasks.job_folder import CANCEL, DATASET, METRICS, SPEC, JobFolder
from tasks.trainers import MEMORY_KEPT, choose_trainers, decide_trainers
from training.base_models import find_base_model
from training.config import TrainConfig
from training.memory import plan_memory
from training.schemas import JobSpec

BASE = "smollm2-135m"
GB = 1_000_000_000
PLENTY = 1000 * GB


@pytest.mark.parametrize(
    ("jobs", "cores", "expected"),
    [(1, 2, 1), (2, 2, 1), (3, 2, 2), (8, 2, 2), (8, 4, 4), (8, 8, 1), (9, 8, 8), (8, 1, 1), (0, 2, 1)],
)
def test_more_jobs_than_cores_get_a_trainer_per_core(jobs: int, cores: int, expected: int) -> None:
    assert decide_trainers(jobs, cores) == expected


@pytest.mark.parametrize(("free", "expected"), [(2.2 * GB, 1), (2.3 * GB, 2)])
def test_all_of_them_must_fit_and_leave_some_memory_alone(free: float, expected: int) -> None:
    assert pytest.approx(2.22 * GB, rel=1e-2) == 2 * GB / (1 - MEMORY_KEPT)
    assert decide_trainers(3, 2, needed_bytes=GB, free_bytes=int(free)) == expected


@pytest.mark.parametrize(("wanted", "jobs", "expected"), [(1, 8, 1), (2, 8, 2), (4, 3, 3), (4, 1, 1)])
def test_a_number_that_was_set_counts_up_to_the_jobs(wanted: int, jobs: int, expected: int) -> None:
    assert decide_trainers(jobs, 2, wanted=wanted) == expected
    assert decide_trainers(jobs, 2, wanted=wanted, needed_bytes=GB, free_bytes=GB) == 1


# ---- asked of the machine and of the job folders ------------------------------------------------------


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A machine with two cores, enough memory and no GPU; said by the parts that ask it."""
    monkeypatch.setenv("OWNVOICE_HOME", str(tmp_path))
    monkeypatch.delenv("OWNVOICE_TRAINERS", raising=False)
    monkeypatch.setattr(trainers, "usable_cores", lambda: 2)
    monkeypatch.setattr(trainers, "free_machine_bytes", lambda: PLENTY)
    monkeypatch.setattr(trainers, "_device_type", lambda: "cpu")
    monkeypatch.setattr(trainers, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(trainers, "_have_weights", lambda folders: None)
    tools.settings.cache_clear()
    yield str(tmp_path / "storage")
    tools.settings.cache_clear()


def cohort(storage: str, *names: str, **changes: object) -> list[str]:
    config = TrainConfig.model_validate(changes).model_dump(mode="json")
    for name in names:
        folder = JobFolder(storage, name)
        folder.write_text(DATASET, "")
        spec = JobSpec(job_id=name, base_model=BASE, version=1, train_config=config)
        folder.write_json(SPEC, spec.to_json_dict())
    return list(names)


def test_three_jobs_on_two_cores_get_two_trainers(storage: str) -> None:
    assert choose_trainers(cohort(storage, "a", "b", "c"), storage) == 2


def test_a_gpu_trains_in_one_process(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainers, "_device_type", lambda: "cuda")
    assert choose_trainers(cohort(storage, "a", "b", "c"), storage) == 1


def test_jobs_that_are_finished_or_cancelled_do_not_count(storage: str) -> None:
    jobs = cohort(storage, "a", "b", "c", "d")
    JobFolder(storage, "a").write_json(METRICS, {})
    assert choose_trainers(jobs, storage) == 2
    JobFolder(storage, "b").write_text(CANCEL, "")
    assert choose_trainers(jobs, storage) == 1


def test_the_largest_job_decides_whether_memory_is_enough(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = cohort(storage, "a", "b", "c", batch_tokens=512, max_seq_tokens=512)
    large = {"batch_tokens": 4096, "max_seq_tokens": 1024}
    plan = plan_memory(find_base_model(BASE).dimensions, TrainConfig.model_validate(large), kind="cpu")
    monkeypatch.setattr(trainers, "free_machine_bytes", lambda: int(1.9 * plan.total))
    assert (
        choose_trainers([*small, *cohort(storage, "c", batch_tokens=512, max_seq_tokens=512)], storage) == 2
    )
    assert choose_trainers([*small, *cohort(storage, "d", **large)], storage) == 1


def test_a_job_that_cannot_be_read_takes_no_neighbour_along(storage: str) -> None:
    jobs = cohort(storage, "a", "b", "c")
    JobFolder(storage, "b").write_text(SPEC, "{")
    assert choose_trainers(jobs, storage) == 2


def test_one_process_can_be_asked_for(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWNVOICE_TRAINERS", "1")
    assert choose_trainers(cohort(storage, "a", "b", "c"), storage) == 1


# ---- a trainer that is told to end ---------------------------------------------------------------------


def test_a_second_signal_does_not_tear_the_checkpoint_that_the_first_one_saves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(trainer_process, "_at_work", True)
    saved: list[str] = []
    try:
        signal.signal(signal.SIGTERM, trainer_process._end)
        with pytest.raises(SystemExit):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)
                saved.append("whole")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert saved == ["whole"]
