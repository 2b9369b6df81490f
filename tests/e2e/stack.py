"""The local stack as a user has it: `ownvoice up` in a home of its own, everything else by its commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from store import jobs
from store.database import Database, open_database
from training.precision import processor_has_bf16
from training.schemas import Job, JobEvent
from training.settings import PROJECT_ROOT

_T = TypeVar("_T")
OWNVOICE = Path(sys.executable).parent / "ownvoice"
SAMPLE = PROJECT_ROOT / "samples" / "merrin.mbox"
MERRIN, YARD = "merrin.tolquay@example.org", "yard@example.net"
LAX_GATE = PROJECT_ROOT / "tests" / "gate.yaml"
"""What a few steps teach would not pass the real one; tests of that set OWNVOICE_GATE themselves."""
PATIENCE = 1 if processor_has_bf16() else 3
"""How much longer everything that trains is waited for where bf16 would be emulated."""
TRAIN_S = 420.0 * PATIENCE
"""The longest that a test waits for a whole training of a few steps (30 s on two idle cores)."""
SMALL = """
base_model: smollm2-135m
epochs: {epochs}
max_steps: {steps}
learning_rate: 1.0e-3
batch_tokens: 256
lora: {{rank: 4, alpha: 8, dropout: 0.0}}
data: {{min_usable: 20, min_held_out: 4, max_held_out: 6}}
checkpoint_every_s: 0.5
"""
"""A preset with short steps (about 0.7 s each), so that a test can act between two of them."""


@dataclass(frozen=True)
class Answer:
    """What a command printed and ended with."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, str]:
        """Code and message of a refused `--json` command; the sentence is on standard error as well."""
        found: dict[str, str] = self.json["error"]
        assert " ".join(found["message"].split()) in " ".join(self.err.split())
        return found


@dataclass(frozen=True)
class CommandLine:
    """`ownvoice` in a home of its own, whatever the developer's environment says."""

    home: Path
    variables: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str | Path, code: int = 0, timeout_s: float = 120.0) -> Answer:
        """Run one command to its end; asserts its exit code, and that nobody is shown a traceback."""
        return finish(self.start(*arguments), code, timeout_s)

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(OWNVOICE), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(),
            # Not the checkout: a command must not depend on where it is typed.
            cwd=self.home,
        )

    def environment(self) -> dict[str, str]:
        named = ("DATABASE_URL", "OLLAMA_BASE_URL", "INTERNAL_API_KEY", "FINE_TUNING_WEBHOOK_URL")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("OWNVOICE_", "PREFECT_")) and name not in named
        }
        shown = {"COLUMNS": "160", "NO_COLOR": "1", "OWNVOICE_HOME": str(self.home)}
        return {**kept, **shown, "OWNVOICE_GATE": str(LAX_GATE), **self.variables}

    def with_variables(self, **variables: str) -> CommandLine:
        return CommandLine(self.home, {**self.variables, **variables})


def finish(process: subprocess.Popen[str], code: int = 0, timeout_s: float = TRAIN_S) -> Answer:
    """Wait for a command; asserts its exit code, and that nobody is shown a traceback."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"no end after {timeout_s} s: {process.args}\n{out}\n{err}") from None
    assert "Traceback" not in out + err, f"{process.args}\n{out}\n{err}"
    assert process.returncode == code, f"{process.args} ended {process.returncode}, not {code}\n{out}\n{err}"
    return Answer(process.returncode, out, err)


@dataclass(frozen=True)
class Running:
    """A running stack: its command line, its database, its Prefect server and its job folders."""

    command: CommandLine

    @property
    def home(self) -> Path:
        return self.command.home

    @property
    def written(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / "stack.json").read_text())
        return found

    def database(self) -> Database:
        return open_database(self.written["databaseUrl"], max_connections=2)

    def worker(self, name: str) -> psutil.Process:
        """Return the live process `worker-cpu` or `worker-gpu`."""
        pids = {item["name"]: item["pid"] for item in self.written["processes"]}
        return psutil.Process(pids[name])

    def runs_of(self, worker: str) -> list[psutil.Process]:
        """Return the processes that carry out flow runs for a worker."""
        found = []
        for child in self.worker(worker).children(recursive=True):
            try:
                if "prefect.engine" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        return found

    def run_process(self, job_id: str) -> psutil.Process:
        """Return the process of the job's own flow run (its training has another)."""
        run_id = self.job(job_id)["flowRunId"]
        (found,) = [
            process
            for process in self.runs_of("worker-cpu")
            if process.environ().get("PREFECT__FLOW_RUN_ID", "").replace("-", "") == run_id.replace("-", "")
        ]
        return found

    def folder(self, job_id: str) -> Path:
        return self.home / "storage" / "jobs" / job_id

    def job(self, job_id: str) -> dict[str, Any]:
        """Return the job with its events, as the command line shows it.

        To wait for something ask the row or the events: a command takes two seconds of processor from the
        training that is waited for.
        """
        found: dict[str, Any] = self.command("show", job_id, "--json").json
        return found

    def row(self, job_id: str) -> Job:
        with self.database() as database:
            return jobs.find_job(database, job_id)

    def events(self, job_id: str) -> list[JobEvent]:
        with self.database() as database:
            return jobs.events(database, job_id, limit=10_000)

    def import_sample(self, email: str) -> None:
        """Give the sample mailbox to another person: its two addresses become their aliases."""
        self.command("import", SAMPLE, "--user", email, "--alias", MERRIN, "--alias", YARD)

    # ---- Prefect ---------------------------------------------------------------------------------------

    def prefect(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """GET, or POST when there is a body."""
        method = "GET" if body is None else "POST"
        url = f"{self.written['prefectApiUrl']}/{path}"
        return httpx.request(method, url, json=body, timeout=30).raise_for_status().json()

    def prefect_patch(self, path: str, body: dict[str, Any]) -> None:
        httpx.patch(f"{self.written['prefectApiUrl']}/{path}", json=body, timeout=30).raise_for_status()

    def prefect_all(self, path: str, body: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Return all pages of a filter."""
        found: list[dict[str, Any]] = []
        while page := self.prefect(path, {**(body or {}), "limit": 200, "offset": len(found)}):
            found += page
        return found

    def training_runs(self, job_id: str) -> list[dict[str, Any]]:
        """Return the GPU flow runs of a job, oldest first."""
        body = {"flow_runs": {"tags": {"all_": [f"job:{job_id}"]}}}
        return sorted(self.prefect_all("flow_runs/filter", body), key=lambda run: str(run["created"]))

    def wait_for_job(self, job_id: str, *statuses: str, timeout_s: float = TRAIN_S) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            row = self.row(job_id)
            assert row.status in statuses or not row.status.is_final, (
                f"{row.status}: {row.error_code} {row.error_message}"
            )
            return self.job(job_id) if row.status in statuses else None

        return wait_for(reached, f"job {job_id} to be {' or '.join(statuses)}", timeout_s)


def wait_for(ask: Callable[[], _T | None], what: str, timeout_s: float = 120.0) -> _T:
    """Ask until there is an answer. Timeouts are for a machine with other work to do, not promises."""
    deadline = time.monotonic() + timeout_s
    while not (found := ask()):
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.2)
    return found


def processes_of(home: Path) -> Iterator[psutil.Process]:
    """Yield every process that belongs to a home: by its environment, its arguments or its folder."""
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("OWNVOICE_HOME") == str(home)
            mine = mine or any(str(home) in argument for argument in process.cmdline())
            if (mine or process.cwd().startswith(str(home))) and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:
            continue
