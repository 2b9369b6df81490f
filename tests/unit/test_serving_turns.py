"""Nobody starves: users take turns, requests of one user keep their order."""

from __future__ import annotations

import threading
import time

import pytest

from serving.turns import Turns
from training.errors import ServingUnavailable


def queue_up(turns: Turns, users: list[str], served: list[str]) -> list[threading.Thread]:
    """Start one thread per entry, each waiting in line before the next one comes."""
    threads = []
    for waiting, user in enumerate(users, start=1):

        def ask(user: str = user) -> None:
            with turns.turn(user, 10):
                served.append(user)

        thread = threading.Thread(target=ask)
        thread.start()
        deadline = time.monotonic() + 5
        while sum(map(len, turns._waiting.values())) < waiting and time.monotonic() < deadline:
            time.sleep(0.001)
        threads.append(thread)
    return threads


def test_second_user_is_served_before_a_busy_first_one_is_done() -> None:
    turns, served = Turns(max_in_a_row=2), []
    with turns.turn("anna", 1):
        threads = queue_up(turns, ["anna"] * 6 + ["boris"], served)
    for thread in threads:
        thread.join(10)
    # Anna held the first turn, so one more of hers, then Boris, then the rest.
    assert served == ["anna", "boris", "anna", "anna", "anna", "anna", "anna"]


def test_three_users_alternate_when_each_has_much_to_ask() -> None:
    turns, served = Turns(max_in_a_row=1), []
    with turns.turn("anna", 1):
        threads = queue_up(turns, ["anna", "anna", "boris", "boris", "carol", "carol"], served)
    for thread in threads:
        thread.join(10)
    assert served == ["boris", "carol", "anna", "boris", "carol", "anna"]


def test_waiting_too_long_leaves_the_line_open_for_the_next() -> None:
    turns = Turns()
    with (
        turns.turn("anna", 1),
        pytest.raises(ServingUnavailable, match="No turn within"),
        turns.turn("boris", 0.01),
    ):
        pass
    with turns.turn("carol", 0.01):
        pass


def test_error_inside_a_turn_gives_the_turn_back() -> None:
    turns = Turns()
    with pytest.raises(RuntimeError), turns.turn("anna", 1):
        raise RuntimeError
    with turns.turn("boris", 0.01):
        pass


def test_only_one_request_runs_at_a_time() -> None:
    turns, running, most = Turns(), [0], [0]

    def ask(user: str) -> None:
        with turns.turn(user, 10):
            running[0] += 1
            most[0] = max(most[0], running[0])
            time.sleep(0.001)
            running[0] -= 1

    threads = [threading.Thread(target=ask, args=(f"user{n % 5}",)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == [1]
    assert turns._holder is None and not turns._waiting
