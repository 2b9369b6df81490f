"""Retrain everybody whose next training is due, in cohorts that share one loaded base model.

Runs daily (each person has a date of their own), and with `ownvoice retrain-due`. Needs the database and
workers on both pools. Leaves ended jobs, new dates, and a summary: the artifact `monthly-retrain`. When it
dies, its jobs go on by themselves; a second one at the same time starts nobody twice.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from tasks.retraining import skip_unchanged, start_due_cohort, summarise, wait_for_cohorts
from training.schemas import RetrainMode


@flow(name="monthly-retrain")
def monthly_retrain(
    mode: RetrainMode = RetrainMode.REPLAY,
    cohort_size: Annotated[int, Field(ge=1, le=64)] = 8,
    cohorts_at_once: Annotated[int, Field(ge=1)] = 2,
    min_new_mails: Annotated[int, Field(ge=0)] = 50,
    config: str | None = None,
) -> dict[str, Any]:
    """Retrain everybody whose next training is due, in cohorts that share one loaded base model.

    Args:
        mode: From what a retrain learns: replay, incremental or rolling.
        cohort_size: Most people that share one loaded base model in one GPU run.
        cohorts_at_once: Most cohorts that are under way at the same time.
        min_new_mails: People with fewer new sent mails are skipped until their next date.
        config: Training preset in configs/train/, without .yaml.
    """
    began = datetime.now(UTC)
    skips = skip_unchanged(min_new_mails)
    started: list[list[str]] = []
    at_work: list[list[str]] = []
    while cohort := start_due_cohort(mode, cohort_size, min_new_mails, config, began):
        started.append(cohort)
        at_work = wait_for_cohorts([*at_work, cohort], cohorts_at_once - 1, began)
    wait_for_cohorts(at_work, 0, began)
    return summarise(skips, started, began).to_json_dict()


if __name__ == "__main__":
    monthly_retrain()
