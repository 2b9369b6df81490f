"""A cohort whose process dies: what is started again, in which order, and who pays for a job that kills."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from store import dispatch, jobs, users
from store.database import Database
from tasks import cohort
from tasks.cohort import train_together
from tasks.following import Ended
from training.config import TrainConfig
from training.schemas import Stage

PEOPLE = ("anna", "bert", "chloe", "dora", "emil")


@pytest.fixture
def ids(home: Path, db: Database) -> dict[str, str]:
    """Jobs that are about to be trained, by the name of their person."""
    made = {}
    for name in PEOPLE:
        user = users.create_user(db, f"{name}@example.org", consent=True)
        config = TrainConfig().model_dump(mode="json")
        job = jobs.create_job(
            db, user.id, base_model="smollm2-135m", config=config, lora_rank=8, lora_alpha=16
        )
        dispatch.take_up(db, job.id, str(uuid4()))
        jobs.enter_stage(db, job.id, Stage.TRAIN)
        made[name] = job.id
    return made


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """A GPU pool that trains two at once when it may, and dies of some jobs; returns what it was asked."""

    def with_killers(*killers: str) -> list[dict[str, Any]]:
        asked: list[dict[str, Any]] = []

        def run_deployment(_: str, *, parameters: dict[str, Any], **__: Any) -> Any:
            asked.append(parameters)
            return SimpleNamespace(id=uuid4())

        def follow(_: Any, waiting: Sequence[str]) -> Iterator[Ended]:
            at_once = 2 if asked[-1]["side_by_side"] else 1
            left = list(waiting)
            while left:
                at_work, left = left[:at_once], left[at_once:]
                if set(at_work) & set(killers):
                    for job_id in (*at_work, *left):
                        yield Ended(job_id, "CRASHED", lost=True, at_work=job_id in at_work)
                    return
                yield from map(Ended, at_work)

        monkeypatch.setattr(cohort, "run_deployment", run_deployment)
        monkeypatch.setattr(cohort, "follow", follow)
        monkeypatch.setattr(cohort, "get_run_logger", lambda: logging.getLogger("test"))  # no flow run here
        return asked

    return with_killers


def ends(ids: dict[str, str]) -> dict[str, bool]:
    """Train them all; whether each of them was lost in the end."""
    lost = {ended.job_id: ended.lost for ended in train_together(list(ids.values()))}
    return {name: lost[job_id] for name, job_id in ids.items()}


def test_a_cohort_that_nothing_happens_to_is_one_run_side_by_side(
    ids: dict[str, str], machine: Callable[..., list[dict[str, Any]]]
) -> None:
    asked = machine()
    assert not any(ends(ids).values())
    assert [parameters["side_by_side"] for parameters in asked] == [True]


@pytest.mark.parametrize("killer", PEOPLE)
def test_a_job_that_kills_its_process_takes_no_neighbour_along(
    killer: str, ids: dict[str, str], machine: Callable[..., list[dict[str, Any]]]
) -> None:
    asked = machine(ids[killer])
    assert ends(ids) == {name: name == killer for name in PEOPLE}
    assert [parameters["side_by_side"] for parameters in asked] == [True, False, False]


def test_jobs_that_were_at_work_come_last_and_one_after_another(
    ids: dict[str, str], machine: Callable[..., list[dict[str, Any]]]
) -> None:
    asked = machine(ids["anna"])
    ends(ids)
    again = [ids[name] for name in ("chloe", "dora", "emil", "anna", "bert")]
    assert asked[1]["job_ids"] == again
    assert asked[2]["job_ids"] == [ids["bert"], ids["anna"]]
