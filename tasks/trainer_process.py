"""The child's side of tasks/trainers.py: one of several single-threaded trainers that share a processor.

It never outlives the flow run that started it, and whoever tells it to end finds its checkpoint saved.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

from prefect import task
from prefect.cache_policies import NO_CACHE

from training.schemas import CohortResult
from training.termination import EXIT_CODE

PARENT_CHECK_S = 0.5
"""How soon a trainer notices that its flow run's process is gone."""
STOP_S = 15.0
"""How long a trainer may take to save: a step's end and a checkpoint are seconds. Prefect's runner kills a
cancelled flow run 30 s after its SIGTERM, and by then the flow must be through with its trainers."""

_trainers = 1
_at_work = False


def trainers_here() -> int:
    """Return how many trainers share the device that this process trains on, itself among them."""
    return _trainers


def become_trainer(trainers: int, parent: int) -> None:
    """Make this process one of `trainers` single-threaded ones that end with the process `parent`."""
    global _trainers
    _trainers = trainers
    # First of all: a SIGTERM or Ctrl-C that Python or Prefect turned into an exception would travel through
    # the pool into the flow run's own threads.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    threading.Thread(target=_end_with, args=(parent,), name="parent-watch", daemon=True).start()
    # For libraries that are loaded later; what torch has loaded already is told directly.
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


@task(name="train_job", task_run_name="train-{job_id}", cache_policy=NO_CACHE)
def train_job_here(job_id: str, storage_url: str) -> CohortResult:
    """Do what `tasks.train.train_job` does, in a trainer: one that is told to end saves, and ends."""
    return train_or_end(job_id, storage_url)


def train_or_end(job_id: str, storage_url: str) -> CohortResult:
    """Train one job; a SIGTERM meanwhile ends this process once the checkpoint is saved.

    It ends right here: handed on, what a signal raised would make the pool take the trainer for a living one
    and give it the next job.
    """
    global _at_work
    from tasks.train import train_job

    try:
        _at_work = True
        return train_job.fn(job_id, storage_url)
    except Exception:
        raise
    except BaseException:
        os._exit(EXIT_CODE)
    finally:
        _at_work = False


def _end(number: int, frame: FrameType | None) -> None:
    if not _at_work:
        os._exit(EXIT_CODE)
    # Once is enough: the pool, the flow and the watch below may all send one, and a second exception would
    # tear the checkpoint that the first one has made the training save.
    for other in (signal.SIGTERM, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(EXIT_CODE)


def _end_with(parent: int) -> None:
    """End this process when `parent` is gone: after a kill -9 nobody else would.

    Not by PR_SET_PDEATHSIG, which fires at the end of the parent's thread that made this process.
    """
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    time.sleep(STOP_S)
    os._exit(EXIT_CODE)  # deaf: it hangs in storage, say
