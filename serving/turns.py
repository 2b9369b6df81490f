"""Take turns: one request at a time, and no user starves behind a busy one."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager

from training.errors import ServingUnavailable

# Ollama reloads the base at each change of user (measured: 1.04 s against 0.46 s warm with a 98 MB base), so
# a user with several waiting requests gets a few answered in a row before the next user's turn.
MAX_IN_A_ROW = 4


class Turns:
    """A fair lock for the threads of one process: users take turns, each user's requests stay in order.

    Ollama itself is not fair: two steady clients of one adapter kept a second user waiting 22 s, until they
    stopped. Across processes the Prefect global concurrency limit `ollama:<host>` does this work.
    """

    def __init__(self, max_in_a_row: int = MAX_IN_A_ROW) -> None:
        self._max_in_a_row = max_in_a_row
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, deque[threading.Event]] = OrderedDict()
        self._holder: str | None = None
        self._in_a_row = 0

    @contextmanager
    def turn(self, user: str, timeout_s: float) -> Iterator[None]:
        """Wait for `user`'s turn and hold it for the body. Raises ServingUnavailable after `timeout_s`."""
        ticket = threading.Event()
        with self._lock:
            if self._holder is None:
                self._grant(user, ticket)
            else:
                self._waiting.setdefault(user, deque()).append(ticket)
        if not ticket.wait(timeout_s) and not self._give_up(user, ticket):
            raise ServingUnavailable(
                f"No turn within {timeout_s:g} s: the serving engine is busy with other requests. Try again."
            )
        try:
            yield
        finally:
            self._pass_on()

    def _grant(self, user: str, ticket: threading.Event) -> None:
        self._in_a_row = self._in_a_row + 1 if user == self._holder else 1
        self._holder = user
        ticket.set()

    def _pass_on(self) -> None:
        with self._lock:
            if not self._waiting:
                self._holder, self._in_a_row = None, 0
                return
            user = self._holder
            if user is None or user not in self._waiting or self._in_a_row >= self._max_in_a_row:
                # The longest-waiting other user; the holder's own queue goes to the end of the line.
                if user is not None and user in self._waiting:
                    self._waiting.move_to_end(user)
                user = next(iter(self._waiting))
            queue = self._waiting[user]
            ticket = queue.popleft()
            if queue:
                self._waiting.move_to_end(user)
            else:
                del self._waiting[user]
            self._grant(user, ticket)

    def _give_up(self, user: str, ticket: threading.Event) -> bool:
        """Leave the line; True when the turn was granted in the same moment and must be used after all."""
        with self._lock:
            if ticket.is_set():
                return True
            queue = self._waiting[user]
            queue.remove(ticket)
            if not queue:
                del self._waiting[user]
            return False
