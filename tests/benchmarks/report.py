"""The figures as one JSON object, and as a Markdown page (docs/performance.md, docs/orchestration.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from textwrap import wrap
from types import ModuleType
from typing import Any

from tests.benchmarks.machine import OTHERS_LIMIT, QUIET_AVG10

WIDTH = 110
KEEP = "<!-- What follows is written by hand; the benchmark that writes this page keeps it. -->"


def assemble(
    command: str,
    machine: dict[str, Any],
    pressure: dict[str, float] | None,
    parts: Mapping[str, dict[str, Any]],
    *,
    quick: bool,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Return the object that the benchmark prints. `quiet` is None where the pressure cannot be known."""
    others = max(_others_shares(parts), default=0.0)
    return {
        "command": command,
        "at": (now or datetime.now(UTC)).isoformat(timespec="seconds"),
        "quick": quick,
        "machine": machine,
        "cpu_pressure": pressure,
        "others_share": others,
        "quiet": None
        if pressure is None
        else pressure["before_avg10"] < QUIET_AVG10 and others < OTHERS_LIMIT,
        **parts,
    }


def kept_by_hand(page: Path) -> str:
    """Return what stands in `page` from the line KEEP on, to stand below new tables; else nothing."""
    if not page.is_file():
        return ""
    _, line, below = page.read_text(encoding="utf-8").partition(KEEP)
    return f"\n{line}{below}" if line else ""


def to_markdown(figures: dict[str, Any], parts: Mapping[str, ModuleType], title: str = "Performance") -> str:
    """Return the page: command, machine, whether the figures count, one table a part with its notes."""
    machine = figures["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        f"# {title}",
        "",
        "Measured by one command, from the root of the repository:",
        "",
        f"    {figures['command']}",
        "",
        f"{figures['at']}, commit {machine['commit'] or 'unknown'}. {machine['processor']}, "
        f"{machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB, {machine['system']}; "
        f"Python {machine['python']}, {packages}.",
        "",
        _worth(figures),
    ]
    for name, part in parts.items():
        if name in figures:
            lines += ["", f"## {part.TITLE}", ""]
            if "error" in figures[name]:
                lines.append(f"Not measured: {_cell(figures[name]['error'])}")
                continue
            header, *rows = part.table(figures[name])
            lines += [_row(header), "|---" + "|--:" * (len(header) - 1) + "|", *map(_row, rows)]
            for note in part.notes(figures[name]) if hasattr(part, "notes") else ():
                lines += ["", *wrap(note, WIDTH)]
    return "\n".join(lines) + "\n"


def _worth(figures: dict[str, Any]) -> str:
    """Say whether the figures may be quoted."""
    pressure = figures["cpu_pressure"]
    if figures["quick"]:
        return "**A trial at reduced size (`--quick`): no figure here may be quoted.**"
    if pressure is None:
        return "This system does not say whether other processes used its processors meanwhile."
    others = f"{100 * figures['others_share']:.0f} %"
    seen = (
        f"in {pressure['before_avg10']:.0f} % of the 10 s before the start some process waited for a "
        f"processor (limit {QUIET_AVG10:.0f} %), and others took at most {others} of the processors "
        f"during a run (limit {100 * OTHERS_LIMIT:.0f} %)."
    )
    if figures["quiet"]:
        return f"The machine was quiet: {seen}"
    return f"**The machine was busy: {seen} Run it again on a quiet machine before quoting a figure.**"


def _others_shares(value: Any) -> Iterator[float]:
    """Yield every `others_share` in nested figures."""
    if isinstance(value, list):
        for item in value:
            yield from _others_shares(item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key == "others_share":
                yield item
            else:
                yield from _others_shares(item)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
