"""Which finished trainings an estimate rests on, and how close it is after the first of a device."""

from __future__ import annotations

from typing import Any

import pytest

from store import jobs
from store.database import Database
from store.rates import measured_runs
from store.users import create_user
from training.base_models import find_base_model
from training.config import TrainConfig
from training.estimate import TEMPLATE_TOKENS, estimate_error, estimate_training, rates_of
from training.schemas import Example, Job, JobMetrics

BASE = "smollm2-135m"
CPU, GPU = "cpu (2 threads)", "NVIDIA L4"
ONE_OF_TWO = "cpu (1 thread)"
CONFIG = TrainConfig()


def finished(db: Database, name: str, *, device: str = CPU, base: str = BASE, **changes: Any) -> Job:
    """Record a job of 100 mails of 400 characters as its flow does: 3 epochs at 500 tokens a second."""
    user = create_user(db, f"{name}@example.org", consent=True)
    job = jobs.create_job(
        db, user.id, base_model=base, config=CONFIG.model_dump(mode="json"), lora_rank=16, lora_alpha=32
    )
    jobs.record(db, job.id, training_emails=100, metrics={"train_characters": 40_000})
    tokens = 3 * (100 * TEMPLATE_TOKENS + 10_000)
    numbers = {
        "device": device,
        "train_tokens": tokens,
        "train_seconds": tokens / 500,
        "device_seconds": tokens / 500 + 30,
        "load_seconds": 4.0,
        "steps": 90,
        "epochs": 3.0,
    }
    return jobs.record(db, job.id, metrics=JobMetrics.model_validate(numbers | changes))


def test_before_any_training_there_is_nothing_to_go_by(db: Database) -> None:
    assert measured_runs(db, BASE) == ("", [])


def test_a_waiting_job_and_one_from_before_this_was_measured_do_not_count(db: Database) -> None:
    finished(db, "anna", device_seconds=None)
    user = create_user(db, "bert@example.org", consent=True)
    jobs.create_job(db, user.id, base_model=BASE, config={}, lora_rank=1, lora_alpha=1)
    assert measured_runs(db, BASE)[1] == []


def test_what_was_recorded_comes_back_newest_first(db: Database) -> None:
    finished(db, "anna")
    finished(db, "bert", steps=91)
    device, runs = measured_runs(db, BASE)
    assert device == CPU and [run.steps for run in runs] == [91, 90]
    assert (runs[0].examples, runs[0].characters, runs[0].load_seconds) == (100, 40_000, 4.0)
    assert runs[0].config == CONFIG.model_dump(mode="json")


def test_runs_of_another_device_or_base_do_not_spoil_the_estimate(db: Database) -> None:
    for number in range(5):
        finished(db, f"slow{number}", train_seconds=4000.0, device_seconds=4100.0)
    finished(db, "anna", device=GPU, train_seconds=10.0, device_seconds=40.0)
    finished(db, "bert", device=GPU, base="llama-3.1-8b", train_seconds=900.0, device_seconds=999.0)
    device, runs = measured_runs(db, BASE)
    assert (device, [run.train_seconds for run in runs]) == (GPU, [10.0])


def test_a_base_that_the_device_has_not_trained_yet_is_a_first_guess_for_that_device(db: Database) -> None:
    finished(db, "anna", device=GPU)
    device, runs = measured_runs(db, "llama-3.1-8b")
    base = find_base_model("llama-3.1-8b")
    assert rates_of(base, CONFIG, device, runs).tokens_per_second == base.gpu_tokens_per_second


def test_a_lone_job_is_estimated_by_runs_that_had_the_processor_to_themselves(db: Database) -> None:
    finished(db, "anna")
    finished(db, "bert", device=ONE_OF_TWO, trainers=2)
    device, runs = measured_runs(db, BASE)
    assert (device, len(runs)) == (CPU, 1)


def test_a_trainers_rate_is_no_rate_of_the_gpu_that_trained_before_it(db: Database) -> None:
    finished(db, "anna", device=GPU)
    finished(db, "bert", device=ONE_OF_TWO, trainers=2)
    assert measured_runs(db, BASE)[0] == ONE_OF_TWO


def test_seconds_of_trainers_side_by_side_are_the_devices_share_until_something_better_is_known(
    db: Database,
) -> None:
    tokens = 3 * (100 * TEMPLATE_TOKENS + 10_000)
    seconds = tokens / 250  # each at half the speed, both at once
    shared = {"train_seconds": seconds, "load_seconds": 8.0, "device_seconds": (seconds + 8 + 52) / 2}
    finished(db, "anna", device=ONE_OF_TWO, trainers=2, **shared)
    rates = rates_of(find_base_model(BASE), CONFIG, *measured_runs(db, BASE))
    assert (rates.tokens_per_second, rates.fixed_seconds) == (pytest.approx(500), pytest.approx(30))


def test_after_the_first_run_on_a_device_the_estimate_is_within_a_quarter(db: Database) -> None:
    # 4.4 characters a token instead of 4, 300 tokens a second, 33 s beside the steps: all unlike the guess.
    def take(mails: int) -> dict[str, Any]:
        tokens = round(3 * mails * (40 + 500 / 4.4))
        return {
            "train_tokens": tokens,
            "train_seconds": tokens / 300,
            "device_seconds": tokens / 300 + 33,
            "load_seconds": 5.0,
        }

    def estimated(mails: int) -> float:
        examples = [
            Example(id=f"m{n}", thread_id=f"t{n}", instruction="", output="x" * 500) for n in range(mails)
        ]
        rates = rates_of(find_base_model(BASE), CONFIG, *measured_runs(db, BASE))
        return estimate_training(examples, CONFIG, rates, 0.0).seconds

    first = finished(db, "anna", **take(100))
    jobs.record(db, first.id, metrics={"train_characters": 50_000})
    for mails in (40, 100, 425):
        before = estimated(mails)
        job = finished(db, f"next{mails}", **take(mails))
        counts = {"train_characters": 500 * mails}
        job = jobs.record(db, job.id, estimated_seconds=before, training_emails=mails, metrics=counts)
        error = estimate_error(job)
        assert error is not None and abs(error) < 0.25, (mails, error)


def test_the_newest_runs_are_found_by_an_index(db: Database) -> None:
    with db.connection() as connection:
        connection.execute("SET enable_seqscan = off")
        plan = connection.execute(
            """
            EXPLAIN SELECT "id" FROM "FineTuningJob"
            WHERE "baseModel" = 'x' AND "metrics" ? 'deviceSeconds' ORDER BY "createdAt" DESC LIMIT 40
            """
        ).fetchall()
    assert "FineTuningJob_measured_base_idx" in str(plan)
