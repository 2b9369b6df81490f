"""Measure what the training settings do to quality; print JSON, write the sections of docs/quality.md.

    python -m tests.benchmarks.quality --out docs/quality.md           everything: hours on two cores
    python -m tests.benchmarks.quality --only precision,masking        some parts
    python -m tests.benchmarks.quality --no-runs --out docs/quality.md only write what is measured already

Finished runs are kept in `--work` (quality.jsonl) and never done twice, so it may be stopped at any time.
They count for the code that they were made with; where a change cannot matter (the same numbers up to
rounding, a docstring), `--code` goes on with the runs of before. Parts that are not complete say so, and a
part of which nothing is measured leaves its section alone. Exit code 1 when a run failed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.benchmarks.machine import describe_machine
from tests.benchmarks.mailboxes import SHARED
from tests.benchmarks.quality.ledger import Ledger, Run, code_version
from tests.benchmarks.quality.page import replace_sections
from tests.benchmarks.quality.processes import do_missing
from training.settings import load_settings

MODULES = {
    "sweep": "tests.benchmarks.quality.sweep",
    "epochs": "tests.benchmarks.quality.epochs",
    "average": "tests.benchmarks.quality.average",
    "precision": "tests.benchmarks.quality.precision",
    "modes": "tests.benchmarks.quality.modes",
    "masking": "tests.benchmarks.quality.masking",
    "gate": "tests.benchmarks.quality.gate",
    "recipes": "tests.benchmarks.quality.recipes",
    "sizes": "tests.benchmarks.quality.sizes",
    "playback": "tests.benchmarks.quality.playback",
}
"""Each has TITLE, runs() -> the runs it needs, and section(ledger) -> Markdown of what is there."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is missing, then print and write; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _options(arguments)
    if not SHARED.is_dir():
        sys.exit(
            "The real mailboxes are not beside the repository (../shared/data/mailboxes): nothing to do."
        )
    # An ordinary `kill` must end the children too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parts: dict[str, ModuleType] = {name: importlib.import_module(MODULES[name]) for name in options.only}
    machine = describe_machine()
    ledger = Ledger(options.work / "quality.jsonl", options.code, machine["commit"])
    failures: list[str] = []
    if not options.no_runs:
        runs = [run for part in parts.values() for run in part.runs()]
        failures = do_missing(runs, ledger, options.work, options.processes)
    sections = {
        part.TITLE: f"{_made_by(name, part.runs(), ledger, machine)}\n\n{part.section(ledger)}"
        for name, part in parts.items()
        if any(ledger.find(run) is not None for run in part.runs())
    }
    if options.out is not None:
        page = options.out.read_text(encoding="utf-8") if options.out.is_file() else ""
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(replace_sections(page, sections), encoding="utf-8")
    print(json.dumps({"code": options.code, "failures": failures, "sections": sections}, indent=2))
    return 1 if failures else 0


def _made_by(part: str, runs: Sequence[Run], ledger: Ledger, machine: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {machine['packages'].get(name, '?')}" for name in ("torch", "transformers"))
    left = len(ledger.missing(runs))
    return (
        f"`python -m tests.benchmarks.quality --only {part}`, {datetime.now(UTC):%Y-%m-%d}, "
        f"commit {', '.join(ledger.commits(runs)) or 'unknown'}; {packages}."
        + (f" **Not complete: {len(runs) - left} of {len(runs)} runs are measured.**" if left else "")
    )


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.quality",
        description="Measure what the training settings do to quality; print JSON.",
    )
    parser.add_argument(
        "--only", type=_names, default=list(MODULES), help=f"parts, with commas: {','.join(MODULES)}"
    )
    parser.add_argument("--out", type=Path, help="page to write the sections of, for example docs/quality.md")
    parser.add_argument(
        "--work",
        type=Path,
        default=load_settings().home / "quality",
        help="folder of finished runs and of the base model's weights",
    )
    parser.add_argument("--processes", type=int, default=2, help="single-threaded processes (default: 2)")
    parser.add_argument(
        "--code", default=code_version(), help="version of the training code whose runs count (default: this)"
    )
    parser.add_argument("--no-runs", action="store_true", help="measure nothing, write what is there")
    return parser.parse_args(arguments)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := set(names) - set(MODULES):
        raise argparse.ArgumentTypeError(
            f"there is no part {', '.join(sorted(unknown))}; choose from {', '.join(MODULES)}"
        )
    return names


if __name__ == "__main__":
    sys.exit(main())
