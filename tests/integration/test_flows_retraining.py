"""The daily scan and the monthly round as Prefect runs them, in this process; the GPU side is a thread."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from store import jobs, retraining, users
from store.database import Database
from training.errors import ConfigError, OrchestratorUnavailable, OwnvoiceError, StoreUnavailable
from training.schemas import JobStatus, Outcome, RetrainLine, ScanReport, Stage

pytestmark = pytest.mark.usefixtures("prefect", "home")
BASE = "smollm2-135m"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.retraining.POLL_S", 0.02)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Event and resource of everything that is announced to dispatchers."""
    found: list[tuple[str, str]] = []

    def emit(event: str, resource: dict[str, str], **_: Any) -> None:
        found.append((event, resource["prefect.resource.id"]))

    monkeypatch.setattr("tasks.dispatch.emit_event", emit)
    return found


def person(db: Database, name: str, *, sent: int, **columns: Any) -> str:
    """Add a person with `sent` counted mails; `columns` of "User" by their own names."""
    user = users.create_user(db, f"{name}@example.org", user_id=f"u-{name}", consent=True)
    with db.connection() as connection:
        connection.execute(
            """INSERT INTO "MailCount" ("emailAccountId", "sent")
               SELECT "id", %s FROM "EmailAccount" WHERE "userId" = %s""",
            (sent, user.id),
        )
        for column, value in columns.items():
            query = f'UPDATE "User" SET "{column}" = %s WHERE "id" = %s'
            connection.execute(query.encode(), (value, user.id))
    return user.id


def due(db: Database, name: str, *, sent: int = 150, days: int = 1) -> str:
    """Add a person who has been due for so many days, with an adapter trained at 100 sent mails."""
    at = datetime.now(UTC) - timedelta(days=days)
    return person(db, name, sent=sent, loraAdapterId="j-old", sentCountTrained=100, adapterNextTraining=at)


def artifact(key: str) -> str:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
    from prefect.client.schemas.sorting import ArtifactSort

    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])),
            sort=ArtifactSort.CREATED_DESC,
            limit=1,
        )
    return str(found[0].data)


# ---- the scan ----------------------------------------------------------------------------------------


def test_scan_makes_jobs_and_announces_them_with_one_event(
    db: Database, events: list[tuple[str, str]]
) -> None:
    from flows.eligibility_scan import eligibility_scan

    for name in ("anna", "berta"):
        person(db, name, sent=200, loraAdapterId="j-old", sentCountTrained=100)
    person(db, "carla", sent=120)
    report = eligibility_scan(config="cpu-smoke")
    assert {key: report[key] for key in ("accounts", "users", "notices", "jobs")} == {
        "accounts": 3,
        "users": 3,
        "notices": 1,
        "jobs": 2,
    }
    assert events == [("ownvoice.job.created", "ownvoice.jobs")]
    (shown,) = json.loads(artifact("eligibility-scan"))
    assert shown == report
    job = jobs.list_jobs(db)[0]
    assert (job.base_model, job.config["name"], job.trigger) == (BASE, "cpu-smoke", "mail_count")


def test_scan_without_new_jobs_disturbs_no_dispatcher(db: Database, events: list[tuple[str, str]]) -> None:
    from flows.eligibility_scan import eligibility_scan

    person(db, "carla", sent=120)
    assert eligibility_scan()["notices"] == 1
    assert events == []


@pytest.mark.parametrize(("error", "calls"), [(StoreUnavailable("away"), 2), (ConfigError("wrong"), 1)])
def test_scan_is_tried_again_only_when_the_database_did_not_answer(
    db: Database, monkeypatch: pytest.MonkeyPatch, error: OwnvoiceError, calls: int
) -> None:
    from flows.eligibility_scan import eligibility_scan
    from tasks.retraining import scan_accounts

    scan, asked = retraining.scan, list[int]()

    def fail_first(*arguments: Any) -> ScanReport:
        asked.append(1)
        if len(asked) == 1:
            raise error
        return scan(*arguments)

    monkeypatch.setattr(retraining, "scan", fail_first)
    monkeypatch.setattr(scan_accounts, "retry_delay_seconds", [0.05, 0.05, 0.05])
    assert eligibility_scan(return_state=True).is_completed() is (calls == 2)
    assert len(asked) == calls


# ---- the monthly round -------------------------------------------------------------------------------


class GpuPool:
    """Stands for the flow runs that a round starts: each cohort ends after a moment, in a thread."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.cohorts: list[list[str]] = []
        self.at_work = self.most_at_work = 0
        self.endings: dict[str, Callable[[str], Any]] = {}
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self, job_ids: list[str], base_model: str) -> UUID:
        assert base_model == BASE
        with self._lock:
            self.cohorts.append(job_ids)
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
        thread = threading.Thread(target=self._work, args=(job_ids,))
        self._threads.append(thread)
        thread.start()
        return uuid4()

    def _work(self, job_ids: list[str]) -> None:
        time.sleep(0.2)
        with self._lock:
            self.at_work -= 1
        for job_id in job_ids:
            user_id = jobs.find_job(self.db, job_id).user_id
            self.endings.get(user_id, self.promote)(job_id)

    def promote(self, job_id: str) -> None:
        self._complete(job_id, Outcome.PROMOTED)

    def keep(self, job_id: str) -> None:
        self._complete(job_id, Outcome.KEPT_CURRENT)

    def fail(self, job_id: str) -> None:
        jobs.fail_job(self.db, job_id, "NOT_ENOUGH_MAIL", "12 usable mails | 100 needed.")

    def _complete(self, job_id: str, outcome: Outcome) -> None:
        jobs.record(self.db, job_id, metrics={"gate": "3.10 → 2.90."}, actual_cost=0.5)
        jobs.enter_stage(self.db, job_id, Stage.PUBLISH)
        jobs.complete_job(self.db, job_id, outcome, ai_provider="llamacpp", ai_model="m")

    def join(self) -> None:
        for thread in self._threads:
            thread.join(30)


@pytest.fixture
def pool(db: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[GpuPool]:
    pool = GpuPool(db)
    monkeypatch.setattr("tasks.retraining.start_cohort", pool.start)
    yield pool
    pool.join()


def test_round_trains_who_is_due_in_cohorts_and_says_what_became_of_each(db: Database, pool: GpuPool) -> None:
    from flows.monthly_retrain import monthly_retrain

    for n in range(5):
        due(db, f"p{n}", days=9 - n)
    lazy = due(db, "lazy", sent=120)
    pool.endings = {"u-p1": pool.keep, "u-p3": pool.fail}
    report = monthly_retrain(mode="incremental", cohort_size=2, cohorts_at_once=1, config="cpu-smoke")
    assert [len(cohort) for cohort in pool.cohorts] == [2, 2, 1]
    assert pool.most_at_work == 1
    counted = {name: report[name] for name in ("due", "trained", "kept", "failed", "skipped", "cohorts")}
    assert counted == {"due": 6, "trained": 3, "kept": 1, "failed": 1, "skipped": 1, "cohorts": 3}
    assert report["cost"] == 2.0
    made = jobs.list_jobs(db)
    assert {(job.trigger, job.config["mode"], job.base_model) for job in made} == {
        ("schedule", "incremental", BASE)
    }
    lines = artifact("monthly-retrain").splitlines()
    assert lines[0].startswith("6 due: 3 trained, 1 kept, 1 skipped, 1 failed. 3 cohorts, ")
    assert lines[4].startswith("| u-p3 | failed | 12 usable mails \\| 100 needed. |")
    assert lines[5].startswith("| u-p1 | kept | 3.10 → 2.90. |")
    assert lines[9].startswith(f"| {lazy} | skipped | 20 new mails, 50 needed; next ")
    assert json.loads(artifact("monthly-retrain-totals")) == [report]


def test_as_many_cohorts_are_under_way_as_asked_for(db: Database, pool: GpuPool) -> None:
    from flows.monthly_retrain import monthly_retrain

    for n in range(6):
        due(db, f"p{n}")
    assert monthly_retrain(cohort_size=1, cohorts_at_once=3)["trained"] == 6
    assert pool.most_at_work == 3


def test_round_with_nobody_due_says_so(db: Database, pool: GpuPool) -> None:
    from flows.monthly_retrain import monthly_retrain

    busy = due(db, "busy")
    jobs.create_job(db, busy, base_model=BASE, config={}, lora_rank=4, lora_alpha=8)
    report = monthly_retrain()
    assert (report["due"], report["busy"], pool.cohorts) == (0, 1, [])
    said = "Nobody was due. 1 more have a job under way and were left alone."
    assert artifact("monthly-retrain") == said


def test_database_that_is_away_for_a_moment_ends_no_round(
    db: Database, pool: GpuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.monthly_retrain import monthly_retrain

    list_ends, outage = retraining.list_ends, [StoreUnavailable("away")] * 3

    def sometimes_away(*arguments: Any) -> list[RetrainLine]:
        if outage:
            raise outage.pop()
        return list_ends(*arguments)

    monkeypatch.setattr(retraining, "list_ends", sometimes_away)
    due(db, "anna")
    assert monthly_retrain()["trained"] == 1
    assert outage == []


def test_cohort_that_cannot_be_started_is_left_to_the_dispatcher(
    db: Database, pool: GpuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.monthly_retrain import monthly_retrain

    def dispatched_later(job_ids: list[str], base_model: str) -> UUID:
        pool.start(job_ids, base_model)
        raise OrchestratorUnavailable("The Prefect server is busy.")

    monkeypatch.setattr("tasks.retraining.start_cohort", dispatched_later)
    due(db, "anna")
    assert monthly_retrain()["trained"] == 1


def test_round_that_died_is_repeated_without_starting_anybody_twice(
    db: Database, pool: GpuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.monthly_retrain import monthly_retrain

    for n in range(4):
        due(db, f"p{n}")
    with monkeypatch.context() as dying:

        def die(*_: Any) -> None:
            raise SystemExit(1)

        dying.setattr(retraining, "list_ends", die)
        with pytest.raises(SystemExit):
            monthly_retrain(cohort_size=2)
    assert monthly_retrain(cohort_size=2)["due"] == 2
    pool.join()
    made = jobs.list_jobs(db)
    assert sorted(job.user_id for job in made) == ["u-p0", "u-p1", "u-p2", "u-p3"]
    assert {job.status for job in made} == {JobStatus.COMPLETED}


def test_round_stops_waiting_before_the_next_one_and_names_who_still_trains(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.monthly_retrain import monthly_retrain

    monkeypatch.setattr("tasks.retraining.start_cohort", lambda job_ids, base_model: uuid4())
    monkeypatch.setattr("tasks.retraining.ROUND_LIMIT", timedelta(seconds=2))
    due(db, "anna")
    assert monthly_retrain()["running"] == 1
    assert "| u-anna | still running |" in artifact("monthly-retrain")


@pytest.mark.parametrize("parameters", [{"cohort_size": 0}, {"cohorts_at_once": 0}, {"mode": "yearly"}])
def test_parameters_that_make_no_sense_are_refused_before_anything_happens(
    db: Database, pool: GpuPool, parameters: dict[str, Any]
) -> None:
    from prefect.exceptions import ParameterTypeError

    from flows.monthly_retrain import monthly_retrain

    due(db, "anna")
    with pytest.raises(ParameterTypeError):
        monthly_retrain(**parameters)
    assert jobs.list_jobs(db) == []
