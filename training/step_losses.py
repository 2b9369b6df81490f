"""The losses of a run's steps, read without making the host wait for the step that is under way."""

from __future__ import annotations

import torch


class StepLosses:
    """Losses go in as tensors and come out as numbers in `read`, on a GPU one step later.

    Reading a number from a GPU waits until it has done all its work; the next step could not be prepared
    meanwhile. The loss of a step is therefore copied while the next one is already queued. On CPU nothing
    is gained by waiting, and each is read at once.
    """

    def __init__(self, read: list[float], *, late: bool) -> None:
        self.read = read
        """All that are known, the first step's first; a resumed run brings those of its checkpoint."""
        self._late = late
        self._waiting: tuple[torch.Tensor, torch.cuda.Event | None] | None = None

    def add(self, loss: torch.Tensor) -> None:
        """Take the loss of the step that was just queued, and read the one before it."""
        self.catch_up()
        self._waiting = _copy(loss.detach())
        if not self._late or not self.read:  # somebody waits for the first number
            self.catch_up()

    def catch_up(self) -> None:
        """Read the loss that is still under way: before a checkpoint, a look at held-out mail and the end."""
        if self._waiting is None:
            return
        copy, copied = self._waiting
        if copied is not None:
            copied.synchronize()
        self._waiting = None
        self.read.append(float(copy))


def _copy(loss: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Queue a copy into page-locked memory; the event says when it has arrived."""
    if loss.device.type != "cuda":
        return loss.clone(), None
    copy = torch.empty((), dtype=loss.dtype, pin_memory=True)
    copy.copy_(loss, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(loss.device))
    return copy, copied
