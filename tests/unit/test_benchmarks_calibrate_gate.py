"""The calibration writes its tables into a page that others write in too, and measures without a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.calibrate_gate import Person, measure, to_markdown, write_section
from training.panel import read_panel

MARKER = "<!-- tables of calibrate_gate -->"


def test_tables_are_replaced_and_everything_else_stays(tmp_path: Path) -> None:
    def page_with(tables: str) -> str:
        before = "# Quality\n\n## Others\n\ntheirs\n\n## Gate calibration\n\nwhy\n\n"
        return f"{before}{MARKER}\n{tables}\n{MARKER}\n\nbecause\n\n## More\n"

    page = tmp_path / "quality.md"
    page.write_text(page_with("old"))
    write_section(page, "new\n")
    assert page.read_text() == page_with("new")


def test_a_page_that_is_not_there_is_begun(tmp_path: Path) -> None:
    page = tmp_path / "quality.md"
    write_section(page, "tables")
    assert page.read_text() == f"# Quality\n\n## Gate calibration\n\n{MARKER}\ntables\n{MARKER}\n"


def test_the_figures_hold_numbers_and_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    # Fewer draws and a shorter learning curve: the same figures, only coarser.
    monkeypatch.setattr("tests.benchmarks.calibrate_gate.DRAWS", 25)
    monkeypatch.setattr("tests.benchmarks.calibrate_gate.OWN_MAILS", (20,))
    people = [Person(p.name, p.train, p.held_out, p.names) for p in read_panel()[:2]]
    figures = measure(people)
    assert set(figures) == {person.name for person in people}

    def leaves(value: object) -> list[object]:
        return [leaf for v in value.values() for leaf in leaves(v)] if isinstance(value, dict) else [value]

    assert all(isinstance(leaf, int | float) for leaf in leaves(figures))
    assert all(of["style"]["p_other_above_own"] > 0.9 for of in figures.values())
    assert all(f"| {person.name} |" in to_markdown(figures) for person in people)
