"""The databases of commands that run in the process of a test: a command's own ends, this one goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.session import Session


@pytest.fixture
def closed_sessions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close what commands open: a pool without its server fills the log with attempts to reconnect."""
    opened: list[Session] = []

    class Recorded(Session):
        def __init__(self) -> None:
            opened.append(self)

    monkeypatch.setattr("app.cli.Session", Recorded)
    yield
    for session in opened:
        if "db" in session.__dict__:
            session.db.close()
