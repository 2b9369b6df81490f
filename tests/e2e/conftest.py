"""One stack for all end-to-end tests, and the main job that many of them look at."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from store.database import Database
from tests.e2e.stack import MERRIN, PATIENCE, SAMPLE, TRAIN_S, YARD, CommandLine, Running, processes_of
from training.settings import PROJECT_ROOT

TIMEOUT_S = 900 * PATIENCE
"""Of a test that starts the stack or waits for trainings: a few minutes on two idle cores."""
LONG_TIMEOUT_S = 1800 * PATIENCE
"""Of one that waits for faults to be noticed, or for an image to be built."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("timeout") is None:
            long = any(item.get_closest_marker(name) for name in ("slow", "docker"))
            item.add_marker(pytest.mark.timeout(LONG_TIMEOUT_S if long else TIMEOUT_S))


class MainJob(NamedTuple):
    """What the commands of the main job printed, in order."""

    imported: dict[str, Any]
    imported_again: dict[str, Any]
    report: dict[str, Any]
    job: dict[str, Any]
    events: list[dict[str, Any]]
    user: dict[str, Any]


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A stack that `ownvoice up` started; `ownvoice down` at the end must leave no process of it."""
    # A short path, and not pytest's own folder: see tests/stack.py.
    home = Path(tempfile.mkdtemp(prefix="ov-")).resolve()
    command = CommandLine(home)
    own_cache = PROJECT_ROOT / ".ownvoice" / "cache"
    if own_cache.is_dir():
        (home / "cache").symlink_to(own_cache)  # materialising the base takes seconds and is tested elsewhere
    try:
        command("up", timeout_s=300)
        yield Running(command)
        command("down")
        assert list(processes_of(home)) == []
    finally:
        for process in processes_of(home):
            process.kill()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def command(running: Running) -> CommandLine:
    return running.command


@pytest.fixture
def db(running: Running) -> Iterator[Database]:
    with running.database() as database:
        yield database


@pytest.fixture(scope="session")
def main_job(running: Running) -> MainJob:
    """The sample's owner, from her mailbox to her adapter, with the commands that a person types."""
    command = running.command
    import_sample = ("import", SAMPLE, "--user", MERRIN, "--alias", YARD, "--json")
    imported = command(*import_sample).json
    imported_again = command(*import_sample).json
    report = command("check", MERRIN, "--config", "cpu-smoke", "--json").json
    job = command("train", MERRIN, "--config", "cpu-smoke", "--follow", "--json", timeout_s=TRAIN_S).json
    with running.database() as database, database.connection() as connection:
        row = connection.execute(
            'SELECT "aiProvider", "aiModel", "loraAdapterId", "loraAdapterPath" FROM "User" WHERE "id" = %s',
            (job["userId"],),
        ).fetchone()
    assert row is not None
    return MainJob(
        imported=imported,
        imported_again=imported_again,
        report=report,
        job=job,
        events=running.job(job["id"])["events"],
        user=dict(zip(("provider", "model", "adapter", "path"), row, strict=True)),
    )
