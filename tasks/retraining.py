"""Who is due, as Prefect runs it: the daily scan and the monthly round. CPU side.

Everything that must not be lost is in the database before a task returns (store/retraining.py): a run that
dies leaves waiting jobs, and dispatch-jobs starts those.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from store import retraining
from store.retraining import NewJob, Skips
from tasks.cohort import start_cohort
from tasks.dispatch import announce_waiting_jobs
from tasks.round_summary import SHOWN_LINES, add_up, to_markdown
from tasks.tools import database, settings
from training.base_models import find_base_model
from training.config import load_train_config
from training.errors import OrchestratorUnavailable, StoreUnavailable
from training.schemas import RetrainEnd, RetrainMode, RetrainReport, ScanReport

POLL_S = 3.0
ROUND_LIMIT = timedelta(hours=20)
"""After this long a round starts no cohort and waits for none: the next day's round is near."""
SCAN_ARTIFACT = "eligibility-scan"
ROUND_ARTIFACT = "monthly-retrain"
TOTALS_ARTIFACT = "monthly-retrain-totals"
"""The totals once more, as one row that the command line reads."""


def store_is_away(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Retry while PostgreSQL does not answer: what was committed is not repeated."""
    return isinstance(getattr(state.data, "exception", state.data), StoreUnavailable)


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=[5, 20, 60], retry_condition_fn=store_is_away)
def scan_accounts(config: str | None) -> ScanReport:
    """Tell and train whom the mail since the last scan concerns."""
    report = retraining.scan(database(), _new_job(config))
    get_run_logger().info("%s", report.sentence)
    return report


@task(cache_policy=NO_CACHE)
def announce_jobs(report: ScanReport) -> None:
    """Make a dispatcher start the new jobs now, with one event for all of them."""
    if report.jobs:
        announce_waiting_jobs()


@task(cache_policy=NO_CACHE)
def show_scan(report: ScanReport) -> None:
    """Leave the scan's counts in the Prefect UI."""
    create_table_artifact(
        key=SCAN_ARTIFACT,
        table=[report.to_json_dict()],
        description="Accounts with new sent mail, their owners, and what the scan set off",
    )


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=[5, 20, 60], retry_condition_fn=store_is_away)
def skip_unchanged(min_new_mails: int) -> Skips:
    """Pass over everybody who is due without enough new mail."""
    skips = retraining.skip_due(database(), min_new_mails=min_new_mails, keep=SHOWN_LINES)
    get_run_logger().info("%d people due are skipped", skips.people)
    return skips


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=[5, 20, 60], retry_condition_fn=store_is_away)
def start_due_cohort(
    mode: RetrainMode, cohort_size: int, min_new_mails: int, config: str | None, began: datetime
) -> list[str]:
    """Make jobs for the next people who are due and start them as one cohort; an empty list: nobody is left.

    All of them train on the installation's base model. A cohort that cannot be started now is left to
    dispatch-jobs.
    """
    if datetime.now(UTC) - began > ROUND_LIMIT:
        return []
    new_job = _new_job(config, mode)
    job_ids = retraining.take_due(database(), new_job, limit=cohort_size, min_new_mails=min_new_mails)
    if job_ids:
        try:
            run = start_cohort(job_ids, new_job.base_model)
            get_run_logger().info("%d jobs on %s in flow run %s", len(job_ids), new_job.base_model, run)
        except (OrchestratorUnavailable, StoreUnavailable) as exc:
            get_run_logger().warning("%d jobs wait for dispatch-jobs: %s", len(job_ids), exc.code)
    return job_ids


@task(cache_policy=NO_CACHE)
def wait_for_cohorts(cohorts: list[list[str]], at_most: int, began: datetime) -> list[list[str]]:
    """Wait until at most `at_most` of the cohorts are still at work; return those.

    Raises StoreUnavailable when the database stays away for longer than OWNVOICE_DATABASE_WAIT_S.
    """
    answered = time.monotonic()
    while True:
        try:
            running = [
                cohort
                for cohort in cohorts
                if any(line.end is RetrainEnd.RUNNING for line in retraining.list_ends(database(), cohort))
            ]
            answered = time.monotonic()
            if len(running) <= at_most or datetime.now(UTC) - began > ROUND_LIMIT:
                return running
        except StoreUnavailable:
            if time.monotonic() - answered > settings().database_wait_s:
                raise
        time.sleep(POLL_S)


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=[5, 20, 60], retry_condition_fn=store_is_away)
def summarise(skips: Skips, cohorts: list[list[str]], began: datetime) -> RetrainReport:
    """Add the round up and leave a summary in the Prefect UI."""
    db = database()
    lines = retraining.list_ends(db, [job_id for cohort in cohorts for job_id in cohort])
    report = add_up(
        lines,
        skipped=skips.people,
        cohorts=len(cohorts),
        busy=retraining.count_due_with_job(db),
        seconds=(datetime.now(UTC) - began).total_seconds(),
    )
    create_markdown_artifact(
        key=ROUND_ARTIFACT,
        markdown=to_markdown(report, [*lines, *skips.lines]),
        description="Who was due for the monthly retraining, and what became of it",
    )
    create_table_artifact(key=TOTALS_ARTIFACT, table=[report.to_json_dict()], description="Totals")
    get_run_logger().info("%s", report.sentence)
    return report


def _new_job(config: str | None, mode: RetrainMode | None = None) -> NewJob:
    """Return what all new jobs have in common: the preset, on the installation's base model.

    Raises ConfigError.
    """
    overrides = {} if mode is None else {"mode": mode}
    chosen = load_train_config(config or settings().train_config, overrides)
    return NewJob(
        base_model=find_base_model(chosen.base_model or settings().base_model).id,
        config=chosen.model_dump(mode="json"),
        lora_rank=chosen.lora.rank,
        lora_alpha=chosen.lora.alpha,
    )
