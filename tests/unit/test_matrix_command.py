"""`ownvoice evaluate --matrix` without a model: where the page goes, what a failure leaves, how it ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.cli import app
from app.matrix import require_place
from training.errors import ConfigError
from training.matrix import CrossMatrix, MatrixColumn, MatrixRow

USERS = ("anna@x.example", "bert@x.example")


def matrix(*, usable: int = 120, own: float = 1.0) -> CrossMatrix:
    columns = tuple(MatrixColumn(user_id=u[:4], email=u, usable=usable, old=20, new=0) for u in USERS)
    rows = tuple(
        MatrixRow(user_id=u[:4], title=u, losses=tuple(own if n == m else 2.0 for m in range(2)))
        for n, u in enumerate(USERS)
    )
    return CrossMatrix(base_model="tiny", columns=columns, rows=rows)


def run(found: CrossMatrix, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    monkeypatch.setattr("app.cli.cross_matrix", lambda *_, **__: found)
    monkeypatch.setenv("COLUMNS", "120")
    return CliRunner().invoke(app, ["evaluate", "--matrix", *USERS, *arguments])


@pytest.mark.parametrize("place", ["", "none/m.md", "/proc/m.md", "file/m.md", "shut/m.md", "fifo"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "shut").mkdir(mode=0o555)
    os.mkfifo(tmp_path / "fifo")
    if place == "shut/m.md" and os.geteuid() == 0:
        pytest.skip("root writes into any folder")
    monkeypatch.setattr("app.cli.cross_matrix", lambda *_, **__: pytest.fail("it was measured"))
    shown = CliRunner().invoke(app, ["evaluate", "--matrix", *USERS, "--out", str(tmp_path / place)])
    assert isinstance(shown.exception, ConfigError) and "--out" in str(shown.exception)


def test_asking_for_the_place_leaves_no_file_and_harms_none(tmp_path: Path) -> None:
    (tmp_path / "old.md").write_text("marsupilami")
    require_place(tmp_path / "old.md")
    require_place(tmp_path / "new.md")
    assert [p.name for p in tmp_path.iterdir()] == ["old.md"]
    assert (tmp_path / "old.md").read_text() == "marsupilami"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_disk_that_refuses_after_the_measuring_costs_the_file_alone(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    shown = run(matrix(), monkeypatch, "--out", str(tmp_path / "m.md"), *options)
    assert "The diagonal wins for all 2 mailboxes" in shown.stdout
    assert shown.exit_code == 2 and "No space left on device" in shown.stderr


@pytest.mark.parametrize(
    ("found", "code"), [(matrix(), 0), (matrix(own=3.0), 1), (matrix(usable=40, own=3.0), 0)]
)
def test_only_a_diagonal_that_loses_ends_with_1(
    found: CrossMatrix, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = run(found, monkeypatch)
    assert shown.exit_code == code
    assert (found.verdict is None) is ("Nothing is decided" in shown.stdout)


def test_the_help_says_how_it_ends_when_nothing_is_decided() -> None:
    text = " ".join(CliRunner().invoke(app, ["evaluate", "--help"]).stdout.split())
    assert "0 also when no mailbox is large enough to decide" in text
