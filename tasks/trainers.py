"""How many trainers a cohort gets, and training in several of them. GPU side: no database, no addresses.

One warm process trains one job after another with a thread per core. On a processor, where there are more
jobs than cores, one single-threaded trainer per core is faster (docs/performance.md): threads that wait for
each other at every small product cost more than a second process costs memory.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from queue import Queue

from prefect import get_run_logger
from prefect.futures import PrefectFuture
from prefect.task_runners import ProcessPoolTaskRunner
from pydantic import ValidationError

from tasks.job_folder import DATASET, METRICS, SPEC, JobFolder
from tasks.tools import settings
from tasks.train import is_stopped, train_job
from tasks.trainer_process import STOP_S, become_trainer, train_job_here
from training.base_models import find_base_model, weights_path
from training.config import parse_train_config
from training.errors import OwnvoiceError, TrainerDied
from training.machine_memory import free_machine_bytes
from training.memory import plan_memory
from training.schemas import CohortResult, JobSpec

MEMORY_KEPT = 0.1
"""Share of the free memory that several trainers leave alone: others on the machine grow meanwhile, and what
the kernel kills then is a trainer."""


def train_jobs(job_ids: Sequence[str], storage_url: str, *, side_by_side: bool) -> list[CohortResult]:
    """Train jobs, in several trainers where that is faster; returns their results in the order of `job_ids`.

    `side_by_side` False: one after another in this process, in any case. Raises TrainerDied.
    """
    trainers = choose_trainers(job_ids, storage_url) if side_by_side else 1
    if trainers == 1:
        return [train_job(job_id, storage_url) for job_id in job_ids]
    return _train_side_by_side(job_ids, storage_url, trainers)


def choose_trainers(job_ids: Sequence[str], storage_url: str) -> int:
    """Return how many trainers share this cohort's jobs; 1: none but this process."""
    folders = [JobFolder(storage_url, job_id) for job_id in job_ids]
    left = [folder for folder in folders if not folder.exists(METRICS) and not is_stopped(folder)]
    cores, wanted = usable_cores(), settings().trainers
    if decide_trainers(len(left), cores, wanted=wanted) == 1 or _device_type() != "cpu":
        return 1
    _have_weights(left)
    needed, free = max(map(_needed_bytes, left)), free_machine_bytes()
    trainers = decide_trainers(len(left), cores, wanted=wanted, needed_bytes=needed, free_bytes=free)
    if trainers == 1:
        get_run_logger().warning(
            "One process trains all %d jobs: a trainer needs %.1f GB, and the %.1f GB that are free are not "
            "enough for one per core",
            len(left),
            needed / 1e9,
            free / 1e9,
        )
    return trainers


def decide_trainers(
    jobs: int, cores: int, *, wanted: int | None = None, needed_bytes: int = 0, free_bytes: int = 0
) -> int:
    """Return how many trainers of `needed_bytes` each train `jobs` jobs on a processor with `cores` cores.

    One per core, or one in all: fewer than one per core leave cores idle, which one process with a thread
    per core does not. `wanted` is the number that somebody set (OWNVOICE_TRAINERS); memory is asked even so.
    """
    trainers = min(wanted, jobs) if wanted is not None else cores if jobs > cores else 1
    if trainers * needed_bytes > (1 - MEMORY_KEPT) * free_bytes:
        return 1
    return max(1, trainers)


def usable_cores() -> int:
    """Return the cores that this process may use: fewer than the machine's where it was given a part."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _device_type() -> str:
    from training.device import best_device  # torch: seconds

    return best_device().type


def _have_weights(folders: Sequence[JobFolder]) -> None:
    """Write a GGUF base's weights into the cache, once: trainers that found none would each do it.

    What goes wrong here goes wrong again in a trainer, which says so for each job.
    """
    for folder in folders:
        with suppress(OwnvoiceError, ValidationError, OSError):
            spec = JobSpec.model_validate(folder.read_json(SPEC))
            weights_path(find_base_model(spec.base_model), settings().cache)
            return


def _needed_bytes(folder: JobFolder) -> int:
    """Return what the job's training needs by plan; 0 for one that cannot be read and will say so itself."""
    with suppress(OwnvoiceError, ValidationError):
        spec = JobSpec.model_validate(folder.read_json(SPEC))
        dimensions = find_base_model(spec.base_model).dimensions
        return plan_memory(dimensions, parse_train_config(spec.train_config), kind="cpu").total
    return 0


def _train_side_by_side(job_ids: Sequence[str], storage_url: str, trainers: int) -> list[CohortResult]:
    """Train jobs in `trainers` processes that end with this one, each with the base in its memory."""
    get_run_logger().info("%d jobs in %d trainers of one thread each", len(job_ids), trainers)
    # The longest first: what is short comes last and evens out.
    order = iter(sorted(job_ids, key=lambda job_id: -_dataset_bytes(JobFolder(storage_url, job_id))))
    futures: dict[str, PrefectFuture[CohortResult]] = {}
    ended: Queue[PrefectFuture[CohortResult]] = Queue()
    runner = ProcessPoolTaskRunner(
        max_workers=trainers, initializer=become_trainer, initargs=(trainers, os.getpid())
    )
    try:
        with runner, _trainers_ended():
            # A trainer gets its next job when it is free: the pool's own queue mixes what waits in it.
            for _ in job_ids:
                if len(futures) >= trainers:
                    ended.get().result()
                job_id = next(order)
                futures[job_id] = runner.submit(
                    train_job_here, {"job_id": job_id, "storage_url": storage_url}
                )
                futures[job_id].add_done_callback(ended.put)
            return [futures[job_id].result() for job_id in job_ids]
    except BrokenProcessPool as exc:
        raise TrainerDied(
            f"One of {trainers} trainers died, and the others have saved what they had. Most often memory "
            "ran out: the jobs that are left go on from their checkpoints in one process."
        ) from exc


def _dataset_bytes(folder: JobFolder) -> int:
    with suppress(OwnvoiceError):
        return folder.size_of(DATASET)
    return 0


@contextmanager
def _trainers_ended() -> Iterator[None]:
    """Tell the processes that were made in the block to end when anything raises, and wait until they have.

    The pool's own end waits for their jobs, which take hours. One that does not listen is killed.
    """
    before = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        trainers = set(multiprocessing.active_children()) - before
        for trainer in trainers:
            trainer.terminate()
        until = time.monotonic() + STOP_S
        for trainer in trainers:
            trainer.join(max(0.0, until - time.monotonic()))
            if trainer.is_alive():
                trainer.kill()
        raise
