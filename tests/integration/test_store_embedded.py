"""The embedded server starts once, is attached to after that, and ends only when told to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from store import embedded
from store.database import open_database
from training.errors import StoreError

REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ownvoice-home-"))
    yield folder
    embedded.stop(folder)
    shutil.rmtree(folder)


def start_elsewhere(home: Path) -> subprocess.Popen[str]:
    """Start the server from another process, which then ends."""
    code = (
        "import sys; from pathlib import Path; from store import embedded; "
        "print(embedded.start(Path(sys.argv[1])))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(home)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def connect(url: str) -> None:
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_server_outlives_the_process_that_started_it_and_keeps_its_data(home: Path) -> None:
    url = start_elsewhere(home).communicate(timeout=60)[0].strip()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    assert embedded.start(home) == url
    assert embedded.status(home).running and embedded.status(home).url == url
    assert embedded.stop(home)
    assert not embedded.stop(home) and not embedded.status(home).running
    with pytest.raises(StoreError, match="does not answer"):
        open_database(url)
    with psycopg.connect(embedded.start(home)) as connection:
        assert connection.execute("SELECT n FROM kept").fetchone() == (7,)


def test_processes_that_start_at_once_share_one_server(home: Path) -> None:
    starters = [start_elsewhere(home) for _ in range(3)]
    results = [starter.communicate(timeout=90) for starter in starters]
    assert [starter.returncode for starter in starters] == [0, 0, 0], results
    assert len({out for out, _ in results}) == 1


def test_long_path_with_blanks_works(home: Path) -> None:
    deep = home / ("a long folder name " * 6).strip() / "o'clock"
    url = embedded.start(deep)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("ownvoice",)
    assert embedded.stop(deep)


def test_file_left_by_a_crash_does_not_prevent_the_start(home: Path) -> None:
    embedded.start(home)
    embedded.stop(home)
    # After a reboot the old number may belong to anybody: here to this very process.
    (home / "postgres" / "postmaster.pid").write_text(
        f"{os.getpid()}\n{home}/postgres\n1\n5432\n\n\n\nready\n"
    )
    assert not embedded.status(home).running
    connect(embedded.start(home))


def test_other_database_on_the_same_server_is_made_once(home: Path) -> None:
    url = embedded.start(home)
    prefect = embedded.ensure_database(url, "prefect")
    assert embedded.ensure_database(url, "prefect") == prefect == embedded.url_for_database(url, "prefect")
    with psycopg.connect(prefect) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("prefect",)


def test_environment_variables_of_libpq_do_not_move_the_server(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PGPORT": "1",
        "PGHOST": "nowhere.invalid",
        "PGDATA": "/nowhere",
        "PGUSER": "x",
    }.items():
        monkeypatch.setenv(name, value)
    connect(embedded.start(home))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process as somebody else")
def test_ordinary_user_starts_a_server_beside_roots(home: Path) -> None:
    embedded.start(home)
    theirs = Path(tempfile.mkdtemp(prefix="ownvoice-user-"))
    os.chown(theirs, NOBODY, NOBODY)

    # A process of its own, which imports as root (root's Python need not be readable for others) and then
    # becomes somebody else. A fork of this process would bring along the threads of every test before.
    program = (
        "import os, sys; from pathlib import Path; from store import embedded; "
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); embedded.start(Path(sys.argv[1]))"
    )
    try:
        started = subprocess.run(
            [sys.executable, "-c", program, str(theirs)], capture_output=True, text=True, timeout=60
        )
        assert started.returncode == 0, started.stderr
        url = embedded.status(theirs).url
        assert url is not None
        connect(url)
        assert (theirs / "postgres").stat().st_uid == NOBODY
    finally:
        embedded.stop(theirs)
        shutil.rmtree(theirs)


def test_data_of_another_version_is_refused_untouched(home: Path) -> None:
    data = home / "postgres"
    data.mkdir()
    (data / "PG_VERSION").write_text("16\n")
    with pytest.raises(StoreError, match=r"made by PostgreSQL 16.*DATABASE_URL"):
        embedded.start(home)
    assert (data / "PG_VERSION").read_text() == "16\n"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda url: embedded.url_for_database(url, "nope"), "no such database"),
        (lambda url: "postgresql://anna:secret@127.0.0.1:1/own", r"anna@127\.0\.0\.1:1/own does not answer"),
    ],
)
def test_unreachable_database_says_where_and_what_to_do(postgres: str, change: object, sentence: str) -> None:
    with pytest.raises(StoreError, match=sentence) as refused:
        open_database(change(postgres))  # type: ignore[operator]
    assert "secret" not in str(refused.value) and "DATABASE_URL" in str(refused.value)
