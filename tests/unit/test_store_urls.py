"""Addresses of databases: another database on the same server, and no password in any sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from store.database import MIGRATIONS, address_of
from store.embedded import url_for_database
from store.job_rows import sources
from training.errors import ConfigError
from training.schemas import FINAL_STATUSES, JobStatus


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://postgres@/ownvoice?host=/a%20b/postgres&port=5432",
        "postgres://anna:p%40ss%2Fword@db.example.org:6543/ownvoice?sslmode=require",
        "postgresql://anna@[::1]:5432/ownvoice",
        "postgresql:///ownvoice",
        "host=db.example.org user=anna password=x dbname=ownvoice",
    ],
)
def test_url_for_another_database_differs_in_the_name_only(url: str) -> None:
    other = conninfo_to_dict(url_for_database(url, "prefect"))
    assert other == {**conninfo_to_dict(url), "dbname": "prefect"}


def test_address_shows_no_password() -> None:
    assert address_of("postgresql://anna:secret@db:5432/own") == "anna@db:5432/own"


def test_malformed_url_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as refused:
        address_of("postgresql://anna:sec ret@db:port/own")
    assert "ret@" not in str(refused.value) and refused.value.__suppress_context__


def test_migrations_are_ordered_and_shipped() -> None:
    names = [path.name for path in sorted(MIGRATIONS.glob("*.sql"))]
    assert names and all(re.match(r"\d{3}_[a-z_]+\.sql$", name) for name in names)
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    assert 'store = ["migrations/*.sql"]' in pyproject.read_text()


def test_active_index_lists_exactly_the_final_statuses() -> None:
    text = (MIGRATIONS / "003_jobs.sql").read_text()
    (listed,) = re.findall(r'"FineTuningJob_one_active_key".*?NOT IN \((.*?)\)', text, re.DOTALL)
    assert {name.strip(" '") for name in listed.split(",")} == set(FINAL_STATUSES)


def test_sources_follow_the_transition_table() -> None:
    assert sources(JobStatus.PENDING) == ["FAILED"]
    assert sources(JobStatus.COMPLETED) == ["DEPLOYING", "EVALUATING"]
