"""The one way in which every trainer's steps are timed and its tokens are counted."""

from __future__ import annotations

import time
from typing import Any


class StepClock:
    """Seconds and tokens of training steps; the first step warms up and does not count.

    The first step of a process pays for memory that the later ones find mapped, and a run of 8 steps would be
    charged more for it than one of 20. It is reported, not hidden.
    """

    def __init__(self) -> None:
        self._fed = 0
        self._marks: list[tuple[float, int, int]] = []

    def watch_inputs(self, embedding: Any) -> None:
        """Count every token that goes through this input embedding (a torch module), padding included."""

        def count(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
            self._fed += inputs[0].numel()

        embedding.register_forward_hook(count)

    def start(self) -> None:
        """Note the beginning of the first step; later calls change nothing."""
        if not self._marks:
            self._marks.append((time.perf_counter(), 0, self._fed))

    def step_done(self, tokens: int) -> None:
        """Note the end of a step; `tokens` is the count of real ones since the start."""
        self._marks.append((time.perf_counter(), tokens, self._fed))

    def figures(self) -> dict[str, Any]:
        """Return the rates and what they are made of. Needs two steps.

        `fed_tokens_per_second` counts what the model was given: more than the mails hold where rows are
        padded, fewer where a prefix that they share is computed once.
        """
        (start, _, _), (first, first_tokens, first_fed), *_ = self._marks
        last, tokens, fed = self._marks[-1]
        return {
            "tokens_per_second": round((tokens - first_tokens) / (last - first), 1),
            "fed_tokens_per_second": round((fed - first_fed) / (last - first), 1),
            "seconds": round(last - first, 2),
            "tokens": tokens - first_tokens,
            "steps": len(self._marks) - 2,
            "first_step_seconds": round(first - start, 2),
            "first_step_tokens": first_tokens,
        }


def seconds_for(figures: dict[str, Any], tokens: int) -> float:
    """Return how long a training on `tokens` takes at the pace of a shorter one: its own first step, then
    its rate."""
    later = max(0, tokens - figures["first_step_tokens"])
    return float(figures["first_step_seconds"] + later / figures["tokens_per_second"])
