"""Run what is missing in single-threaded processes at the lowest priority, and keep each result as it comes.

One thread a process: two OpenMP threads that share a core with anybody wait for each other at every barrier.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tests.benchmarks.child import describe_failure
from tests.benchmarks.quality.ledger import Ledger, Run
from tests.benchmarks.quality.measure import measure

NICENESS = 15
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def do_missing(runs: Sequence[Run], ledger: Ledger, work: Path, processes: int) -> list[str]:
    """Do the runs that the ledger lacks; returns one sentence for each that failed.

    A line of progress goes to standard error after every run. A failed run is tried again by the next call.
    """
    missing = ledger.missing(runs)
    _say(f"{len(missing)} of {len(set(map(repr, runs)))} runs are to be done in {processes} processes")
    if not missing:
        return []
    os.environ.update(ENVIRONMENT)  # read by OpenMP when torch is loaded, in the children
    failures: list[str] = []
    started = time.monotonic()
    pool = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=os.nice, initargs=(NICENESS,)
    )
    try:
        futures: dict[Future[dict[str, Any]], Run] = {
            pool.submit(_measure, run, work): run for run in missing
        }
        for done, future in enumerate(as_completed(futures), start=1):
            run, result = futures[future], future.result()
            what = f"{run.kind} {run.mailbox} {_short(run.settings)}"
            if "failed" in result:
                failures.append(f"{what}: {result['failed']}")
            else:
                ledger.add(run, result)
            _say(
                f"{done}/{len(missing)} after {(time.monotonic() - started) / 60:.1f} min: {what}"
                + (f" FAILED: {result['failed']}" if "failed" in result else "")
            )
    finally:
        pool.shutdown(cancel_futures=True)
    return failures


def _measure(run: Run, work: Path) -> dict[str, Any]:
    """Measure in the child; an error comes back as words that quote no mail."""
    try:
        return measure(run, work)
    except Exception as exc:
        return {"failed": describe_failure(exc)}


def _short(settings: object) -> str:
    return str(settings).replace("'", "").replace("{", "").replace("}", "")


def _say(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, file=sys.stderr, flush=True)
