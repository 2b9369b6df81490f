"""A decision of the gate in the terminal: its checks, the loss by step, the voice between base and person."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from training.decision_words import (
    ONLY_SHOWN,
    LossSeries,
    MetricWords,
    Verdict,
    VoiceScores,
    loss_series,
    missed_checks,
    voice_scores,
    words_of_metrics,
)
from training.schemas import GateDecision, JobMetrics

WIDEST = 76
"""Columns of a picture; a longer line makes the same numbers no clearer."""
NARROWEST = 44
"""Columns below which there is no picture: the labels alone take half of it."""
LOSS_ROWS = 9
_COLOURS = {Verdict.MET: "green", Verdict.MISSED: "red", Verdict.SHOWN: "dim"}
_TRAINING, _VALIDATION = ("•", "dim"), ("◆", "yellow")
_LINES = {"base": ("┄", "dim"), "adapter": ("─", "cyan"), "in use": ("┈", "magenta")}
_ADAPTER, _IN_USE, _LIMIT = ("▼", "cyan"), ("▲", "magenta"), ("┊", "yellow")
_BEYOND = 0.25
"""How far below 0 or above 1 the ruler reaches; what lies farther stands at its end, with its number."""


def decision_parts(metrics: JobMetrics, width: int) -> Iterator[RenderableType]:
    """Yield what `ownvoice show` prints of a decision; nothing for a job that has none (yet)."""
    series = loss_series(metrics)
    if metrics.decision is not None:
        words = words_of_metrics(metrics.decision)
        if words:
            yield checks_table(words)
        if any(row.verdict is Verdict.SHOWN for metric in words for row in metric.rows):
            yield Text(f"{Verdict.SHOWN.mark} {ONLY_SHOWN}\n", "dim")
    columns = min(width, WIDEST)
    if columns < NARROWEST:
        return
    if series is not None:
        yield loss_plot(series, columns)
    scores = voice_scores(metrics.decision) if metrics.decision is not None else None
    if scores is not None:
        yield voice_ruler(scores, columns)


def checks_table(words: Iterable[MetricWords]) -> Table:
    """Return all checks, metric by metric, each with its mark."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("check", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("must be", no_wrap=True)
    for metric in words:
        table.add_row(_mark(metric.verdict), Text(metric.title, "bold"), "", Text(metric.weight, "dim"))
        for row in metric.rows:
            value = Text(row.value, _COLOURS[row.verdict])
            table.add_row(_mark(row.verdict), Padding(Text(row.label), (0, 0, 0, 2)), value, row.must_be)
    return table


def missed_lines(decision: GateDecision) -> list[Text]:
    """Return the checks that were missed and count, a line each."""
    return [
        Text.assemble(_mark(row.verdict), f" {row.label}: {row.value}, must be {row.must_be}")
        for row in missed_checks(decision)
    ]


def loss_plot(series: LossSeries, width: int) -> Text:
    """Return the loss by step; held-out losses are lines across it, named at their right."""
    numbers = [loss for _, loss in (*series.training, *series.validation, *series.held_out)]
    high, low = max(numbers), min(numbers)
    axis, names = 5, max([len(_label(line)) + 1 for line in series.held_out], default=0)
    columns = width - axis - names
    last = max(step for step, _ in (*series.training, *series.validation)) or 1
    grid = [[(" ", "")] * columns for _ in range(LOSS_ROWS)]

    def row(loss: float) -> int:
        return round((high - loss) / (high - low or 1) * (LOSS_ROWS - 1))

    def column(step: float) -> int:
        return round(step / last * (columns - 1))

    # The adapter's own line last: of lines in one row it is the one to see.
    for whose, nll in sorted(series.held_out, key=lambda line: line[0] == "adapter"):
        grid[row(nll)] = [_LINES[whose]] * columns
    for step, loss in _every_column(series.training, last / columns):
        grid[row(loss)][column(step)] = _TRAINING
    for step, loss in series.validation:
        grid[row(loss)][column(step)] = _VALIDATION
    beside = _beside([(row(nll), (whose, nll)) for whose, nll in series.held_out])
    scale = {0: high, LOSS_ROWS // 2: (high + low) / 2, LOSS_ROWS - 1: low}
    plot = Text("loss by step, nat per reply token\n", no_wrap=True)
    for at, cells in enumerate(grid):
        plot.append(f"{scale[at]:4.1f} " if at in scale else " " * axis, "dim")
        plot.append(Text.assemble(*cells))
        if at in beside:
            plot.append(f" {_label(beside[at])}", _LINES[beside[at][0]][1])
        plot.append("\n")
    plot.append(f"{'':{axis}}0{f'step {last}':>{columns - 1}}\n", "dim")
    return plot.append(" " * axis).append(_legend(series)).append("\n")


def voice_ruler(scores: VoiceScores, width: int) -> Text:
    """Return the ruler from the base (0) to the person (1): the adapter above it, the one in use below."""

    def column(score: float) -> int:
        share = (min(1 + _BEYOND, max(-_BEYOND, score)) + _BEYOND) / (1 + 2 * _BEYOND)
        return round(share * (width - 1))

    zero, one = column(0), column(1)
    line = [("─" if zero < at < one else "╌", "") for at in range(width)]
    line[zero], line[one] = ("├", ""), ("┤", "")
    named = [(zero, "base 0", ""), (one, "person 1", "")]
    if scores.must_be is not None:
        line[column(scores.must_be)] = _LIMIT
        named.append((column(scores.must_be), f"at least {scores.must_be:.2f}", _LIMIT[1]))
    only_shown = " (only shown)" if scores.only_shown else ""
    ruler = Text(f"voice score, by a judge of authorship{only_shown}\n", no_wrap=True)
    ruler.append(_pointer(column(scores.candidate), _ADAPTER, f"adapter {scores.candidate:.2f}", width))
    ruler.append(Text.assemble(*line, "\n"))
    if scores.current is not None:
        ruler.append(_pointer(column(scores.current), _IN_USE, f"in use {scores.current:.2f}", width))
    return ruler.append(_centred(named, width))


def _every_column(points: Sequence[tuple[int, float]], step: float) -> Iterator[tuple[float, float]]:
    """Yield the points, and between two of them one every `step`, so that the curve has no holes."""
    yield from points[:1]
    for (start, loss), (end, next_loss) in pairwise(points):
        between = max(1, math.ceil((end - start) / step))
        for n in range(1, between + 1):
            yield start + (end - start) * n / between, loss + (next_loss - loss) * n / between


def _beside(lines: Sequence[tuple[int, tuple[str, float]]]) -> dict[int, tuple[str, float]]:
    """Return which line is named in which row: its own, or one below where two lie together."""
    named: dict[int, tuple[str, float]] = {}
    highest_first = sorted(lines, key=lambda placed: -placed[1][1])
    free = 0
    for below, (row, line) in zip(range(len(lines) - 1, -1, -1), highest_first, strict=True):
        at = min(max(row, free), LOSS_ROWS - 1 - below)
        named[at], free = line, at + 1
    return named


def _pointer(at: int, mark: tuple[str, str], label: str, width: int) -> Text:
    """Return a line with a mark at one column and its label on the side that has room."""
    character, style = mark
    if at + len(label) + 2 <= width:
        return Text.assemble(" " * at, (f"{character} {label}", style), "\n")
    return Text.assemble(" " * (at - len(label) - 1), (f"{label} {character}", style), "\n")


def _centred(labels: Sequence[tuple[int, str, str]], width: int) -> Text:
    """Return a line with labels centred on their columns, moved right where they would touch."""
    line = Text()
    for at, label, style in sorted(labels):
        start = max(at - len(label) // 2, len(line) + 1 if line else 0)
        line.append(" " * (min(start, width - len(label)) - len(line))).append(label, style)
    return line.append("\n")


def _mark(verdict: Verdict | None) -> Text:
    return Text(verdict.mark, _COLOURS[verdict]) if verdict else Text("–", "dim")


def _label(line: tuple[str, float]) -> str:
    return f"{line[0]} {line[1]:.2f}"


def _legend(series: LossSeries) -> Text:
    shown = [
        (_TRAINING, "training", series.training),
        (_VALIDATION, "validation", series.validation),
        (_LINES["adapter"], "held-out mail", series.held_out),
    ]
    return Text("   ").join(Text.assemble(mark, f" {name}") for mark, name, drawn in shown if drawn)
