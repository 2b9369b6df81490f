"""Several embedded engines on one base and one folder of adapters, each of which answers on its own.

llama.cpp spends a small model's tokens one after another and two threads on one token wait for each other, so
a single-threaded engine per core answers more in an hour than one engine with all cores. Its own parallel
slots would share one pass over the weights, but what one request is told then depends on who asks beside it;
here each answer is, bit for bit, the one that a lane alone would give. (Measured on two cores, eight prompts
of 96 tokens to SmolLM2-135M: one engine with two threads 120 to 136 tokens/s, two with one 141 to 206, eight
slots 148, and only these changed an answer.)
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from pathlib import Path
from queue import LifoQueue

from serving.base import Serving
from training.schemas import ChatMessage, Generated, GenerateOptions, Published, ServedModel


class Lanes:
    """`serving.base.Serving` for callers with many questions. Safe for several threads."""

    def __init__(self, engines: Sequence[Serving]) -> None:
        """`engines`: at least one, equal in all but their processes; they are closed with this object."""
        self.engine = engines[0].engine
        self.at_once = len(engines)
        self._first = engines[0]
        self._engines = tuple(engines)
        # Last in, first out: who asks one question after another keeps to one warm lane.
        self._free: LifoQueue[Serving] = LifoQueue()
        for engine in reversed(engines):
            self._free.put(engine)

    def base_ready(self) -> None:
        """As the seam says; the other lanes start with the first question that reaches them."""
        self._first.base_ready()

    def base_digest(self) -> str:
        """As the seam says."""
        return self._first.base_digest()

    def publish(self, adapter: Path, name: str) -> Published:
        """As the seam says; the lanes share one folder of adapters."""
        return self._first.publish(adapter, name)

    def verify(self, name: str, digest: str) -> None:
        """As the seam says."""
        self._first.verify(name, digest)

    def generate(self, name: str | None, messages: list[ChatMessage], options: GenerateOptions) -> Generated:
        """Answer on a lane that is free, or on the first that becomes so."""
        lane = self._free.get()
        try:
            return lane.generate(name, messages, options)
        finally:
            self._free.put(lane)

    def render(self, messages: list[ChatMessage]) -> str:
        """As the seam says."""
        return self._first.render(messages)

    def remove(self, name: str) -> bool:
        """Remove `name` from the folder and from the memory of every lane."""
        return any([lane.remove(name) for lane in self._engines])

    def list(self) -> builtins.list[ServedModel]:
        """As the seam says."""
        return self._first.list()

    def close(self) -> None:
        """Stop every lane; answers under way end with ServingUnavailable."""
        for lane in self._engines:
            lane.close()
