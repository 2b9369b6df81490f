"""A cohort trained in several processes: the same adapters, and no process outlives the run, however it ends.

The flow runs as a worker runs it, in a process of its own, so that it can be told to end or be killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.job_folder import CANCEL, CHECKPOINT, DATASET, ERROR, HELD_OUT, METRICS, PROGRESS, SPEC, JobFolder
from tasks.trainers import decide_trainers
from tests.adapters import smollm2_gguf
from tests.bases import persona_mails
from tests.e2e.stack import wait_for
from tests.prefect_server import PASSWORD, PrefectServer
from training.base_models import find_base_model
from training.checkpoint import CHECKPOINT_FILE
from training.config import TrainConfig, load_train_config
from training.dataset import to_jsonl
from training.machine_memory import free_machine_bytes
from training.memory import plan_memory
from training.schemas import JobSpec
from training.settings import PROJECT_ROOT

pytestmark = [pytest.mark.usefixtures("prefect"), pytest.mark.timeout(600)]
BASE = "smollm2-135m"
ENDLESS = 10_000
"""Steps: far more than a test waits for."""
SAME_LOSS = 0.02
"""nat: what one and two threads may differ by in the mean held-out loss, in bf16."""


@pytest.fixture
def storage(home: Path, base_cache: Path) -> str:
    smollm2_gguf()
    needed = plan_memory(find_base_model(BASE).dimensions, config_of(1), kind="cpu").total
    if decide_trainers(3, 2, needed_bytes=needed, free_bytes=free_machine_bytes()) == 1:
        pytest.skip(f"two trainers need {2 * needed / 1e9:.1f} GB and a tenth more")
    (home / "cache").symlink_to(base_cache)
    return str(home / "storage")


def config_of(steps: int) -> TrainConfig:
    changes = {
        "max_steps": steps,
        "epochs": 1 if steps < ENDLESS else 20,  # 20 at most
        "batch_tokens": 128,
        "checkpoint_every_s": 3600,
        "lora": {"rank": 2, "dropout": 0.1},
    }
    return load_train_config("cpu-smoke", changes)


def job(storage: str, name: str, steps: int, mails: int = 12) -> JobFolder:
    folder = JobFolder(storage, name)
    folder.write_text(DATASET, to_jsonl(persona_mails(mails)))
    folder.write_text(HELD_OUT, to_jsonl(persona_mails(3, first=90)))
    config = config_of(steps).model_dump(mode="json")
    folder.write_json(
        SPEC, JobSpec(job_id=name, base_model=BASE, version=1, train_config=config).to_json_dict()
    )
    return folder


@dataclass(frozen=True)
class Run:
    """train-adapters in a process of its own."""

    process: subprocess.Popen[bytes]
    server: PrefectServer
    name: str

    def trainers(self) -> list[psutil.Process]:
        return [
            child
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if "spawn_main" in " ".join(child.cmdline())
        ]

    def state(self) -> dict[str, Any]:
        (run,) = self.server.post("flow_runs/filter", {"flow_runs": {"tags": {"all_": [self.name]}}})
        found: dict[str, Any] = run["state"]
        return found


@pytest.fixture
def start(home: Path, storage: str, prefect: PrefectServer) -> Iterator[Any]:
    started: list[Run] = []

    def start_run(*folders: JobFolder, trainers: int = 2) -> Run:
        name = f"run-{os.getpid()}-{home.name}-{len(started)}"
        code = (
            "import sys\nfrom prefect import tags\nfrom flows.train_adapters import train_adapters\n"
            "if __name__ == '__main__':\n"
            "    with tags(sys.argv[1]):\n"
            "        train_adapters(sys.argv[4:], sys.argv[2], sys.argv[3])\n"
        )
        script = home / "run_flow.py"
        script.write_text(code)
        environment = os.environ | {
            "OWNVOICE_HOME": str(home),
            "OWNVOICE_TRAINERS": str(trainers),
            "PREFECT_API_URL": prefect.api,
            "PREFECT_API_AUTH_STRING": PASSWORD,
        }
        process = subprocess.Popen(
            [sys.executable, str(script), name, BASE, storage, *(folder.job_id for folder in folders)],
            cwd=PROJECT_ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            # Whoever runs the tests in the background of a shell hands an ignored Ctrl-C on to every process.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(Run(process, prefect, name))
        return started[-1]

    yield start_run
    for run in started:
        if run.process.poll() is None:
            for child in run.trainers():
                child.kill()
            run.process.kill()
            run.process.wait(30)


def step_of(folder: JobFolder) -> int:
    return int(folder.read_json(PROGRESS)["step"]) if folder.exists(PROGRESS) else 0


def checkpoint(folder: JobFolder) -> Path:
    return Path(folder.path) / CHECKPOINT / CHECKPOINT_FILE


def wait_for_steps(*folders: JobFolder) -> None:
    wait_for(lambda: all(step_of(folder) >= 2 for folder in folders), "trainers at work", timeout_s=240)


def all_gone(trainers: list[psutil.Process]) -> bool:
    return not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in trainers)


def test_three_people_in_two_trainers_get_the_adapters_of_one_warm_process(
    start: Any, storage: str, prefect: PrefectServer
) -> None:
    people = ("long", "short", "middle")
    sizes = (24, 8, 16)
    beside = [job(storage, name, 6, mails) for name, mails in zip(people, sizes, strict=True)]
    alone = [job(storage, f"{name}-alone", 6, mails) for name, mails in zip(people, sizes, strict=True)]
    for folders, trainers, loads in ((beside, 2, 2), (alone, 1, 1)):
        run = start(*folders, trainers=trainers)
        assert run.process.wait(300) == 0
        assert run.state()["type"] == "COMPLETED"
        said = messages(prefect, run)
        if trainers == 2 and any(message.startswith("One process trains all") for message in said):
            pytest.skip("memory ran short meanwhile, and the jobs were trained in one process")
        assert sum(message.startswith(f"loaded {BASE}") for message in said) == loads, said
    for one, other in zip(beside, alone, strict=True):
        shared, warm = one.read_json(METRICS), other.read_json(METRICS)
        assert shared["training"]["device"] == "cpu (1 thread)"
        assert (shared["trainers"], warm["trainers"]) == (2, 1)
        assert shared["gpuSeconds"] < shared["training"]["trainSeconds"] + 60
        assert mean_loss(shared, "base") == pytest.approx(mean_loss(warm, "base"), abs=SAME_LOSS)
        assert mean_loss(shared, "candidate") == pytest.approx(mean_loss(warm, "candidate"), abs=SAME_LOSS)
        assert mean_loss(shared, "candidate") < mean_loss(shared, "base") - 2 * SAME_LOSS


def messages(server: PrefectServer, run: Run) -> list[str]:
    (found,) = server.post("flow_runs/filter", {"flow_runs": {"tags": {"all_": [run.name]}}})
    body = {"logs": {"flow_run_id": {"any_": [found["id"]]}}, "limit": 200}
    return [line["message"] for line in server.post("logs/filter", body)]


def mean_loss(metrics: dict[str, Any], arm: str) -> float:
    losses = metrics["losses"][arm]["heldOut"]
    return float(
        sum(loss["nll"] * loss["tokens"] for loss in losses) / sum(loss["tokens"] for loss in losses)
    )


def test_one_job_is_cancelled_and_its_neighbours_go_on(start: Any, storage: str) -> None:
    stopped, other, third = (
        job(storage, "stopped", ENDLESS),
        job(storage, "other", 12),
        job(storage, "third", 2),
    )
    run = start(stopped, other, third)
    wait_for_steps(stopped)
    stopped.write_text(CANCEL, "")
    assert run.process.wait(240) == 0
    assert stopped.read_json(ERROR)["code"] == "CANCELLED"
    assert other.exists(METRICS) and third.exists(METRICS)


@pytest.mark.slow
def test_killed_trainer_ends_the_run_as_crashed_and_its_neighbour_saves(start: Any, storage: str) -> None:
    both = [job(storage, "first", ENDLESS), job(storage, "second", ENDLESS)]
    waiting = job(storage, "waiting", 2)
    run = start(*both, waiting)
    wait_for_steps(*both)
    trainers = run.trainers()
    assert len(trainers) == 2
    trainers[0].kill()
    run.process.wait(60)
    assert run.state()["type"] == "CRASHED"
    assert all_gone(trainers)
    # The killed one's last interval is lost, the neighbour's is not; nothing says that a job has failed.
    assert sorted(checkpoint(folder).exists() for folder in both) == [False, True]
    assert not any(folder.exists(ERROR) for folder in (*both, waiting))
    goes_on(start, next(folder for folder in both if checkpoint(folder).exists()))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_run_that_is_told_to_end_takes_its_trainers_along_and_they_save(
    start: Any, storage: str, number: int
) -> None:
    both = [job(storage, "first", ENDLESS), job(storage, "second", ENDLESS)]
    run = start(*both, job(storage, "waiting", 2))
    wait_for_steps(*both)
    trainers = run.trainers()
    run.process.send_signal(number)
    assert run.process.wait(60) != 0
    assert all_gone(trainers)
    assert run.state()["type"] == "CRASHED"
    assert all(checkpoint(folder).exists() for folder in both)
    goes_on(start, both[1])


@pytest.mark.slow
def test_trainers_notice_that_their_run_was_killed_and_save(start: Any, storage: str) -> None:
    both = [job(storage, "first", ENDLESS), job(storage, "second", ENDLESS)]
    run = start(*both, job(storage, "waiting", 2))
    wait_for_steps(*both)
    trainers = run.trainers()
    run.process.kill()
    wait_for(lambda: all_gone(trainers), "the trainers to end", timeout_s=30)
    assert all(checkpoint(folder).exists() for folder in both)
    goes_on(start, both[0])


def goes_on(start: Any, folder: JobFolder) -> None:
    """A later run, in one process with all threads, goes on from the trainer's checkpoint."""
    before = step_of(folder)
    run = start(folder, trainers=1)
    steps: list[int] = []
    wait_for(lambda: steps.append(step_of(folder)) or steps[-1] > before, "the next step", timeout_s=120)
    folder.write_text(CANCEL, "")
    run.process.wait(60)
    assert min(step for step in steps if step) > before - 2, "nothing was trained twice"
