"""One decision in three places: the job row, the Prefect page and `ownvoice show`."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import httpx
import prefect
import pytest
from prefect import flow
from typer.testing import CliRunner

from app.cli import app
from store import jobs, users
from store.database import Database
from tasks.decision_page import decision_markdown, show_decision
from tests.decisions import metrics, refused
from training.schemas import Job


@pytest.fixture
def judged(home: Path, db: Database, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job whose row holds a decision, as PostgreSQL gives it back."""
    monkeypatch.setenv("COLUMNS", "80")
    anna = users.create_user(db, "anna@example.net", consent=True)
    job = jobs.create_job(db, anna.id, base_model="smollm2-135m", config={}, lora_rank=8, lora_alpha=16)
    found = metrics(decision=refused(), gate=refused().reason, chosen="Rank 8 for 96 mails.")
    return jobs.record(db, job.id, metrics=found, actual_cost=0.0123)


def test_the_page_that_prefect_keeps_is_the_decision_of_the_row_with_its_cost(
    judged: Job, prefect: object
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    @flow
    def judging() -> None:
        assert judged.metrics.decision is not None
        show_decision(judged, judged.metrics.decision)

    judging()
    with get_client(sync_client=True) as client:
        (found,) = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[f"decision-{judged.id}"]))
        )
    cost = "Cost: $0.0123 (estimated $0.0000)."
    assert found.data == f"{decision_markdown(refused(), judged.metrics)}\n\n{cost}"


def test_prefects_page_still_takes_data_urls_as_images() -> None:
    """Its Markdown component makes the one exception that the pictures rest on; an upgrade may drop it."""
    (component,) = (Path(prefect.__ui_v2_static_path__) / "assets").glob("lazy-markdown-*.js")
    assert re.search(r"\^data:image.{0,200}`img`", component.read_text(encoding="utf-8"))


def test_a_prefect_server_that_is_away_costs_the_page_and_not_the_job(
    judged: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(**_: object) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr("tasks.decision_page.create_markdown_artifact", away)
    logging.getLogger("prefect.ownvoice").addHandler(caplog.handler)
    show_decision(judged, refused())
    assert "The decision is not in the Prefect UI: ConnectError" in caplog.text


def test_show_prints_the_row_and_json_carries_every_check(judged: Job) -> None:
    shown = CliRunner().invoke(app, ["show", judged.id[:8]]).stdout
    assert "✗    gain over the base (nat per token)" in shown
    assert "loss by step" in shown and "▼ adapter 0.62" in shown and "Rank 8 for 96 mails." in shown
    assert max(map(len, shown.splitlines())) <= 80

    told = json.loads(CliRunner().invoke(app, ["show", judged.id, "--json"]).stdout)
    assert told["metrics"]["decision"] == refused().to_json_dict()
