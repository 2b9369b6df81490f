"""Many questions to one engine: order, how many at once, and what ends the waiting."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from functools import partial

import pytest

from tasks import side_by_side as module
from tasks.side_by_side import Look, side_by_side


def never() -> None:
    """Somebody who never wants to stop."""


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_answers_come_in_the_order_of_asking_however_long_each_takes(at_once: int) -> None:
    def ask(number: int, look: Look) -> int:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number

    assert list(side_by_side([partial(ask, n) for n in range(20)], at_once, never)) == list(range(20))


def test_as_many_are_under_way_as_the_engine_answers_at_once_and_no_more() -> None:
    together, most, lock = 0, 0, threading.Lock()
    met = threading.Barrier(3)

    def ask(look: Look) -> None:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        met.wait(timeout=30)  # passes only when three are here
        with lock:
            together -= 1

    assert len(list(side_by_side([ask] * 9, 3, never))) == 9
    assert most == 3


def test_a_short_answer_behind_a_long_one_leaves_nobody_idle() -> None:
    others_done = threading.Event()

    def long(look: Look) -> str:
        assert others_done.wait(timeout=30)
        return "long"

    def last(look: Look) -> str:
        others_done.set()
        return "last"

    asks = [long, lambda look: "short", lambda look: "short", last]
    assert list(side_by_side(asks, 2, never)) == ["long", "short", "short", "last"]


@pytest.mark.parametrize("at_once", [1, 3])
def test_what_an_ask_raises_comes_out_at_its_turn_after_the_answers_before_it(at_once: int) -> None:
    def refuses(look: Look) -> int:
        raise ValueError("no")

    got = []
    asks = [lambda look: 1, refuses, lambda look: 3]
    with pytest.raises(ValueError, match="no"), closing(side_by_side(asks, at_once, never)) as answers:
        for answer in answers:
            got.append(answer)
    assert got == [1]


def test_a_look_that_raises_ends_the_waiting_and_those_who_wait_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.01)
    under_way, ended = threading.Semaphore(0), threading.Semaphore(0)
    begun = 0

    def waits(look: Look) -> None:
        nonlocal begun
        begun += 1
        under_way.release()
        try:
            while True:
                look()
                time.sleep(0.01)
        finally:
            ended.release()

    def look() -> None:
        if under_way.acquire(blocking=False):
            raise InterruptedError("cancelled")

    with pytest.raises(InterruptedError), closing(side_by_side([waits] * 8, 2, look)) as answers:
        list(answers)
    for _ in range(begun):
        assert ended.acquire(timeout=30), "an ask goes on although nobody waits for it"
    assert begun <= 2, "a question was asked after the end"


def test_one_at_a_time_stays_in_the_callers_thread_and_looks_before_each() -> None:
    looks = []
    threads = side_by_side([lambda look: threading.current_thread()] * 3, 1, lambda: looks.append(len(looks)))
    assert set(threads) == {threading.current_thread()}
    assert looks == [0, 1, 2]
