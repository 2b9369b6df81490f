"""A training that is told to end (SIGTERM, Ctrl-C) saves first.

Prefect turns a SIGTERM into an exception in the main thread, and recognises its own handler: while another
one is installed, a cancel in its UI is treated as a crash. So the handler that is there stays, the exception
is caught where it passes, and what it must not tear apart is short and lets it wait. Only where a SIGTERM
would end the process without a word is a handler of ours installed.

Python runs signal handlers in the main thread only. In another thread nothing here has any effect, and a
SIGTERM costs what has been trained since the last checkpoint.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

EXIT_CODE = 128 + signal.SIGTERM
"""What a shell reports for a process that SIGTERM ended."""


@contextmanager
def saved_when_told_to_end(save: Callable[[], None]) -> Iterator[None]:
    """Call `save` when the block is left by what is no error: SystemExit, KeyboardInterrupt, Prefect's
    TerminationSignal. A save that fails is given up: it costs time, and the process has to end."""
    with _sigterm_raises():
        try:
            yield
        except Exception:
            raise
        except BaseException:
            with suppress(Exception):
                save()
            raise


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a SIGTERM or Ctrl-C wait for the end of the block, which must be short (milliseconds)."""
    if not _in_main_thread():
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []
    before = {
        number: signal.signal(number, lambda number, frame: waiting.append((number, frame)))
        for number in (signal.SIGTERM, signal.SIGINT)
        if signal.getsignal(number) not in (None, signal.SIG_IGN)  # None: not Python's, cannot be put back
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for received, frame in waiting[:1]:
            pending = before[signal.Signals(received)]
            if callable(pending):
                pending(received, frame)
            else:
                os.kill(os.getpid(), received)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Make a SIGTERM that nobody handles raise SystemExit."""
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(EXIT_CODE)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
