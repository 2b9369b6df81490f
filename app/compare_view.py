"""A comparison in the terminal: answers beside or below each other, then the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from app.plain_text import plain
from training.comparison import ComparedVersion, Comparison
from training.schemas import Generated

NARROWEST = 34
"""Columns of the terminal below which a letter beside another is no longer read with pleasure."""
GATE_HEADING, MEASURED_HEADING = "At the gate, on held-out mail", "On these answers"


@dataclass(frozen=True)
class ScoreRow:
    """One line of the table of scores; a cell is "–" where nothing was stored or measured."""

    label: str
    cells: tuple[str, ...]
    own: str = ""
    """The same number for the person's own mail."""


_STORED = (
    ("gain", "gain over the base, nat per token"),
    ("marginLower", "margin over other people's adapters, lower bound"),
    ("bestShare", "mails that it predicts best of all"),
    ("voice", "voice score (0 base, 1 person)"),
    ("gapClosed", "style gap closed"),
)


def score_rows(comparison: Comparison) -> tuple[tuple[str, tuple[ScoreRow, ...]], ...]:
    """Return (heading, rows) of the two tables: what the gate stored, and what was measured now."""

    def cell(value: float | None, form: str = ".2f") -> str:
        return "–" if value is None else format(value, form)

    versions = comparison.versions
    decisions = [version.decision for version in versions]
    stored = [
        ScoreRow("outcome", tuple(str(version.outcome) if version.outcome else "–" for version in versions)),
        *(
            ScoreRow(label, tuple(cell(d.numbers.get(name) if d else None) for d in decisions))
            for name, label in _STORED
        ),
        ScoreRow(
            "thresholds met",
            tuple(
                f"{sum(check.met for check in d.checks)} of {len(d.checks)}" if d and d.checks else "–"
                for d in decisions
            ),
        ),
    ]
    measured = [
        ScoreRow("voice score (0 base, 1 person)", tuple(cell(v.voice) for v in versions), "1.00"),
        ScoreRow(
            "taken for the person's (0 to 1)",
            tuple(cell(v.authorship) for v in versions),
            cell(comparison.own_authorship),
        ),
        ScoreRow(
            "style distance (lower is nearer)",
            tuple(cell(v.style_distance) for v in versions),
            cell(comparison.own_style_distance),
        ),
        ScoreRow("ended by themselves", tuple(f"{v.stopped} of {len(v.answers)}" for v in versions)),
    ]
    if comparison.own_authorship is None:
        measured = [ScoreRow(row.label, row.cells) for row in measured]
    return ((GATE_HEADING, tuple(stored)), (MEASURED_HEADING, tuple(measured)))


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print every prompt with its answers, and the scores below them all."""
    versions = comparison.versions
    width = console.width // len(versions)
    for number, prompt in enumerate(comparison.prompts):
        console.print(Text(f"\n{plain(prompt)}", style="bold"))
        panels = [_panel(version, version.answers[number], comparison.max_tokens) for version in versions]
        if width < NARROWEST:
            for panel in panels:
                console.print(panel)
            continue
        beside = Table.grid(expand=True)
        for _ in panels:
            beside.add_column(ratio=1)
        beside.add_row(*panels)
        console.print(beside)
    for heading, rows in score_rows(comparison):
        console.print()
        console.print(_table(heading, versions, rows))
    if comparison.notice:
        console.print(Text(f"\n{comparison.notice}"), style="yellow", soft_wrap=True)


def cut_mark(max_tokens: int) -> str:
    """Return what stands below an answer that did not end by itself."""
    return f"[cut at {max_tokens} tokens]"


def _panel(version: ComparedVersion, answer: Generated, max_tokens: int) -> Panel:
    text = Text(plain(answer.text.strip()))
    if not answer.stopped:
        text.append(f"\n{cut_mark(max_tokens)}", style="yellow")
    style = "green" if version.current else "none"
    return Panel(text, title=Text(version.title), box=box.ROUNDED, border_style=style)


def _table(heading: str, versions: Sequence[ComparedVersion], rows: Sequence[ScoreRow]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=heading, title_justify="left", pad_edge=False)
    table.add_column("")
    for version in versions:
        table.add_column(Text(version.title), justify="right")
    own = any(row.own for row in rows)
    if own:
        table.add_column("own mail", justify="right", style="dim")
    for row in rows:
        table.add_row(row.label, *row.cells, *([row.own] if own else []))
    return table
