"""A measurement in a process of its own: nothing is warm from the one before, and its peak memory is its own.

The child is `python -m <module>`, whose last line is `serve(function)`. It reads one JSON object (the
request) from standard input and writes JSON lines: `{"done": 3, "total": 8, "text": ""}` on the way,
`{"result": {}}` at the end. What it says on standard error is kept from the terminal unless it fails.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import OthersWatch, PressureWatch
from training.errors import OwnvoiceError
from training.machine_memory import peak_process_bytes
from training.settings import PROJECT_ROOT

Report = Callable[[float, float, str], None]
"""Called with (done, in all, what is being done)."""
STOP_S = 20.0
"""What an interrupted child gets to clean up after itself."""


def run_child(
    module: str, request: Mapping[str, Any], report: Report, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run `module` with `request`; return its figures with its `peak_rss_bytes`, the `cpu_pressure` and
    `others_share` (machine.OthersWatch) meanwhile added.

    Raises OwnvoiceError with its last words when it fails.
    """
    watch, others = PressureWatch(), OthersWatch()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        child = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            cwd=PROJECT_ROOT,
            env={**os.environ, **(environment or {})},
        )
        try:
            result = _converse(child, request, report)
        finally:
            _stop(child)
        if result is None:
            said.seek(0)
            last = (said.read().strip().splitlines() or ["It said nothing."])[-1]
            raise OwnvoiceError(f"{module} ended with exit code {child.returncode} and no figures: {last}")
    return {**result, "cpu_pressure": watch.summary(), "others_share": others.share()}


def serve(measure: Callable[[dict[str, Any], Report], dict[str, Any]]) -> None:
    """Be the child: answer the request with what `measure(request, report)` returns."""
    # SIGTERM ends Python without its `finally` blocks unless it is made an exception.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Libraries print; only our lines may reach the parent.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    last = 0.0

    def report(done: float, total: float, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.1:  # a bar needs no more, and measuring must not be writing lines
            last = now
            print(json.dumps({"done": done, "total": total, "text": text}), file=answers, flush=True)

    try:
        result = measure(json.load(sys.stdin), report)
    except Exception as exc:
        sys.exit(describe_failure(exc))
    print(
        json.dumps({"result": {**result, "peak_rss_bytes": peak_process_bytes()}}), file=answers, flush=True
    )


def describe_failure(exc: Exception) -> str:
    """Return what went wrong and where. Only our own errors are quoted: others may hold a piece of mail."""
    if isinstance(exc, OwnvoiceError):
        return str(exc)
    place = traceback.extract_tb(exc.__traceback__)[-1]
    return f"{type(exc).__name__} at {Path(place.filename).name}:{place.lineno} ({place.name})"


def _converse(
    child: subprocess.Popen[str], request: Mapping[str, Any], report: Report
) -> dict[str, Any] | None:
    assert child.stdin is not None and child.stdout is not None
    try:
        json.dump(request, child.stdin)
        child.stdin.close()
    except BrokenPipeError:
        pass  # it died at once; its exit code says so below
    result: dict[str, Any] | None = None
    for line in child.stdout:
        message = json.loads(line)
        if "result" in message:
            result = message["result"]
        else:
            report(message["done"], message["total"], message["text"])
    return result if child.wait() == 0 else None


def _stop(child: subprocess.Popen[str]) -> None:
    """End a child that still runs because its parent was interrupted."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdout is not None:
        child.stdout.close()
