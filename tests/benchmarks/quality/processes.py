"""Run what is missing in single-threaded processes at the lowest priority, and keep each result as it comes.

One thread a process: two OpenMP threads that share a core with anybody wait for each other at every barrier.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tests.benchmarks.child import describe_failure
from tests.benchmarks.quality.ledger import Ledger, Run
from tests.benchmarks.quality.measure import measure

NICENESS = 15
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000", "TOKENIZERS_PARALLELISM": "false"}
CLEANUP_S = 30.0
"""What an interrupted run gets to stop its PostgreSQL and to delete its folder."""
_told_to_end = False
"""In a child: the pool would give it another run after the one that was interrupted."""


def do_missing(runs: Sequence[Run], ledger: Ledger, work: Path, processes: int) -> list[str]:
    """Do the runs that the ledger lacks; returns one sentence for each that failed.

    A line of progress goes to standard error after every run. A failed run is tried again by the next call.
    """
    missing = ledger.missing(runs)
    _say(f"{len(missing)} runs are to be done in {processes} processes")
    if not missing:
        return []
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)  # read by OpenMP when torch is loaded, in the children
    failures: list[str] = []
    started = time.monotonic()
    pool = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_child
    )
    try:
        futures: dict[Future[dict[str, Any]], Run] = {
            pool.submit(_measure, run, work): run for run in missing
        }
        for done, future in enumerate(as_completed(futures), start=1):
            run, result = futures[future], future.result()
            told = f"{run.kind}, {run.mailbox}, {_short(run.settings)}"
            if "failed" in result:
                told = f"{told}: {result['failed']}"
                failures.append(told)
            else:
                ledger.add(run, result)
            minutes = (time.monotonic() - started) / 60
            _say(f"{done} of {len(missing)} after {minutes:.1f} min: {told}")
    except BaseException:
        # Stopped on the way: the pool alone would wait for runs of many minutes.
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
    return failures


def _begin_child() -> None:
    os.nice(NICENESS)
    signal.signal(signal.SIGTERM, _end_child)
    # Ctrl-C reaches the whole group; the parent decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End when the parent is gone: it told nobody, and the pool would wait for another run for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(CLEANUP_S)
        os._exit(143)


def _end_child(*_: object) -> None:
    """End as an exception does, so that a run stops its PostgreSQL and deletes its folder."""
    global _told_to_end
    _told_to_end = True
    raise SystemExit(143)


def _measure(run: Run, work: Path) -> dict[str, Any]:
    """Measure in the child; an error comes back as words that quote no mail."""
    if _told_to_end:
        return {"failed": "not begun"}
    try:
        work.mkdir(parents=True, exist_ok=True)
        return measure(run, work)
    except Exception as exc:
        return {"failed": describe_failure(exc)}


def _short(settings: object) -> str:
    return str(settings).replace("'", "").replace("{", "").replace("}", "")


def _say(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, file=sys.stderr, flush=True)
