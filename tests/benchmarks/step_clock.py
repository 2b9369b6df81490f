"""The one way in which every trainer's steps are timed."""

from __future__ import annotations

import time
from typing import Any


class StepClock:
    """Seconds and tokens of training steps; the first step warms up and does not count.

    The first step of a process pays for memory that the later ones find mapped, and a run of 8 steps would be
    charged more for it than one of 20. It is reported, not hidden.
    """

    def __init__(self) -> None:
        self._marks: list[tuple[float, int]] = []

    def start(self) -> None:
        """Note the beginning of the first step; later calls change nothing."""
        if not self._marks:
            self._marks.append((time.perf_counter(), 0))

    def step_done(self, tokens: int) -> None:
        """Note the end of a step; `tokens` is the count since the start."""
        self._marks.append((time.perf_counter(), tokens))

    def figures(self) -> dict[str, Any]:
        """Return the rate and what it is made of. Needs two steps."""
        (start, _), (first, first_tokens), *_ = self._marks
        last, tokens = self._marks[-1]
        return {
            "tokens_per_second": round((tokens - first_tokens) / (last - first), 1),
            "seconds": round(last - first, 2),
            "tokens": tokens - first_tokens,
            "steps": len(self._marks) - 2,
            "first_step_seconds": round(first - start, 2),
        }
