"""One real PostgreSQL and one real Prefect server for all of these tests, a fresh database for every test."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from store import embedded
from store.database import Database, migrate, open_database
from tasks import tools
from tests.prefect_server import OWN_VARIABLES, PrefectServer, prefect_server, used_by_flows
from training.settings import PROJECT_ROOT

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of an embedded server that ends with the session."""
    # Not pytest's own temporary folder: its mode 0700 is restored by every other pytest session of the same
    # user, which would shut a server that runs as another system user out of its data.
    home = Path(tempfile.mkdtemp(prefix="ownvoice-tests-"))
    try:
        url = embedded.start(home)
        with psycopg.connect(url, autocommit=True) as connection:
            # CREATE and DROP DATABASE wait for the disk otherwise, and nothing here must survive a crash.
            for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                connection.execute(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(setting)))
            connection.execute("SELECT pg_reload_conf()")
        yield url
    finally:
        embedded.stop(home)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def migrated_template(postgres: str) -> str:
    """Name of a database with all migrations applied, to copy from."""
    with open_database(embedded.ensure_database(postgres, "template_ownvoice")) as db:
        migrate(db)
    return "template_ownvoice"


@pytest.fixture
def database_url(postgres: str, migrated_template: str) -> Iterator[str]:
    """URL of a fresh, migrated database; set DATABASE_URL to it for code that reads settings."""
    yield from _fresh_database(postgres, migrated_template)


@pytest.fixture
def empty_database_url(postgres: str) -> Iterator[str]:
    """URL of a fresh database without any table."""
    yield from _fresh_database(postgres, "template0")


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with open_database(database_url) as database:
        yield database


@pytest.fixture(scope="package")
def shared_prefect_server() -> Iterator[PrefectServer]:
    """A server that knows no deployment of ours and keeps what earlier modules ran: count nothing on it."""
    with prefect_server() as server:
        yield server


@pytest.fixture(scope="module")
def prefect(shared_prefect_server: PrefectServer) -> Iterator[PrefectServer]:
    """Flows that a test calls run in this process, on the shared server."""
    with used_by_flows(shared_prefect_server):
        yield shared_prefect_server


@pytest.fixture
def home(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Settings of a machine of its own: fresh database, folder storage, the embedded engine, a lax gate."""
    for name in [name for name in os.environ if name.startswith("OWNVOICE_") or name in OWN_VARIABLES]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OWNVOICE_HOME", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("OWNVOICE_GATE", str(PROJECT_ROOT / "tests" / "gate.yaml"))
    tools.settings.cache_clear()
    tools.database.cache_clear()
    yield tmp_path
    if tools.database.cache_info().currsize:
        tools.database().close()
    tools.settings.cache_clear()
    tools.database.cache_clear()


def _fresh_database(server: str, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
        yield embedded.url_for_database(server, name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
