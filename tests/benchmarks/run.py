"""`make bench`: measure speed and memory; print one JSON object on standard output, bars on standard error.

    python -m tests.benchmarks.run                              all parts, 45 to 60 minutes on two cores
    python -m tests.benchmarks.run --only clean,import          some of them
    python -m tests.benchmarks.run --out docs/performance.md    write the page of tables as well

Most of the time goes to `train` (8 minutes), `cohort_speed` (14), `cohort` (18 trainings, 8 minutes) and
`scan` (2 minutes on a quiet machine, 8 beside other work); the rest takes 5. Exit code 1 when a part failed;
the others' figures are printed all the same. A page keeps what stands below its line `KEEP` (report.py).
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.benchmarks.child import Report, describe_failure
from tests.benchmarks.machine import PressureWatch, describe_machine
from tests.benchmarks.report import assemble, kept_by_hand, to_markdown

MODULES = {
    "train": "tests.benchmarks.train",
    "fixed": "tests.benchmarks.fixed_costs",
    "cohort_speed": "tests.benchmarks.cohort_speed",
    "import": "tests.benchmarks.import_mail",
    "job": "tests.benchmarks.job",
    "cohort": "tests.benchmarks.cohort",
    "clean": "tests.benchmarks.clean_mail",
    "scan": "tests.benchmarks.scan",
}


def load_parts(names: Sequence[str] = tuple(MODULES)) -> dict[str, ModuleType]:
    """Return the parts' modules: each has TITLE, measure(work, quick, report) and table(figures); some have
    notes(figures), and a measure that takes `rounds` or `full_trl`."""
    return {name: importlib.import_module(MODULES[name]) for name in MODULES if name in names}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the chosen parts one after another; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _options(arguments)
    parts = load_parts(options.only)
    # An ordinary `kill` must stop what a part started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    watch = PressureWatch()
    sizes = {"rounds": options.rounds, "full_trl": options.full_trl}
    found = {name: _measure(part, options.quick, sizes) for name, part in parts.items()}
    command = shlex.join([".venv/bin/python", "-m", "tests.benchmarks.run", *arguments])
    figures = assemble(command, describe_machine(), watch.summary(), found, quick=options.quick)
    print(json.dumps(figures, indent=2, ensure_ascii=False))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        page = to_markdown(figures, parts, title=options.out.stem.capitalize()) + kept_by_hand(options.out)
        options.out.write_text(page, encoding="utf-8")
    return 1 if any("error" in figure for figure in found.values()) else 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.run", description="Measure speed and memory; print JSON."
    )
    parser.add_argument(
        "--only", type=_names, default=list(MODULES), help=f"parts, with commas: {','.join(MODULES)}"
    )
    parser.add_argument("--out", type=Path, help="Markdown file to write, for example docs/performance.md")
    parser.add_argument("--quick", action="store_true", help="reduced sizes, to try the benchmark itself")
    parser.add_argument("--rounds", type=int, help="rounds of `train`; 2 when it is not given")
    parser.add_argument(
        "--full-trl", action="store_true", help="`cohort_speed`: train TRL's people to the end (half an hour)"
    )
    return parser.parse_args(arguments)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := set(names) - set(MODULES):
        raise argparse.ArgumentTypeError(
            f"there is no part {', '.join(sorted(unknown))}; choose from {', '.join(MODULES)}"
        )
    return names


def _measure(part: ModuleType, quick: bool, sizes: dict[str, Any]) -> dict[str, Any]:
    """Run one part in a private work folder that holds mail for as long as the part runs, and no longer."""
    watch = PressureWatch()
    taken = inspect.signature(part.measure).parameters
    work = Path(tempfile.mkdtemp(prefix="ownvoice-bench-"))
    try:
        with _bar(part.TITLE) as report:
            figures = part.measure(
                work, quick, report, **{name: size for name, size in sizes.items() if name in taken}
            )
    except Exception as exc:
        # One part that cannot be measured here must not cost the others' figures; the reason is printed.
        figures = {"error": describe_failure(exc)}
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {**figures, "cpu_pressure": watch.summary()}


@contextmanager
def _bar(title: str) -> Iterator[Report]:
    with Progress(
        TextColumn("[bold]{task.description:<10}"),
        BarColumn(bar_width=32),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[text]}"),
        console=Console(stderr=True),
    ) as progress:
        task = progress.add_task(title, total=1.0, text="")
        yield lambda done, total, text: progress.update(task, completed=done / total, text=text)
        progress.update(task, completed=1.0, text="measured")


if __name__ == "__main__":
    sys.exit(main())
