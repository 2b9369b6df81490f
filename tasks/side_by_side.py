"""Many questions to one engine: as many under way as it answers at once, answers in the order of asking."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
Look = Callable[[], None]
"""Called now and then by whoever waits; raises when the waiting is to end."""

LOOK_EVERY_S = 1.0
"""How often the caller's `look` is called while an answer is waited for."""


def side_by_side(asks: Iterable[Callable[[Look], T]], at_once: int, look: Look) -> Generator[T, None, None]:
    """Call each of `asks`, at most `at_once` at a time, and yield what they return, in their order.

    `look` is called in the caller's thread, before each ask and every second of waiting; what it raises ends
    the iteration. An ask gets a look of its own for long waits, which raises when nobody wants the answer any
    more. What an ask raises comes out at its turn. Use it in `contextlib.closing`: asks that are under way
    when the iteration ends early are left to end with their engine. With `at_once` 1 everything happens in
    the caller's thread.
    """
    if at_once == 1:
        for ask in asks:
            look()
            yield ask(look)
        return
    unwanted = threading.Event()

    def look_aside() -> None:
        if unwanted.is_set():
            raise CancelledError

    pool = ThreadPoolExecutor(at_once, thread_name_prefix="answer")
    under_way: deque[Future[T]] = deque()
    rest = iter(asks)
    try:
        while True:
            # More than are answered at once: a long answer at the head must not leave the others idle.
            while len(under_way) < 2 * at_once and (ask := next(rest, None)) is not None:
                look()
                under_way.append(pool.submit(ask, look_aside))
            if not under_way:
                return
            while not wait([under_way[0]], timeout=LOOK_EVERY_S).done:
                look()
            yield under_way.popleft().result()
    finally:
        unwanted.set()
        pool.shutdown(wait=False, cancel_futures=True)
