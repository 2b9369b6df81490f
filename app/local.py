"""The embedded stack: what `ownvoice up`, `down` and `status` start, stop and look at.

    PostgreSQL        in <home>/postgres                 unless DATABASE_URL names a server
    Prefect server    127.0.0.1:4200 or the next free    unless PREFECT_API_URL names one
    worker "cpu"      eight runs at once: extract, judge, publish, dispatch
    worker "gpu"      one run at once: training; its environment holds no database or API credentials

Everything outlives the command that started it. What runs is written down in <home>/stack.json, and what
it says is in <home>/logs. Processes are known by pid *and* start time, so that a pid which the kernel gave
to somebody else is never signalled. One file lock per home keeps two `up`s from starting everything twice.
Prefect is never imported here (it costs seconds); it is run, and asked over HTTP.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
from pydantic import Field

from store import embedded
from store.database import migrate, open_database
from training.allocator import allocator_environment
from training.errors import ConfigError, OrchestratorUnavailable, OwnvoiceError
from training.schemas import Schema
from training.settings import PROJECT_ROOT, Settings

FIRST_PORT = 4200
"""Prefect's own; where its documentation and people's bookmarks point."""
LAST_PORT = 4299
SERVER_START_S = 120.0
"""A first start takes 6 s on an idle two-core machine; a loaded laptop may take ten times that."""
WORKER_START_S = 90.0
LOCK_S = 180.0
IDLE_STOP_S = 5.0
"""What an idle worker or server gets to end after SIGTERM."""
RUN_STOP_S = 10.0
"""What a live run gets after SIGTERM to report that it was stopped."""
CPU_RUNS = 8
"""Runs of the CPU worker at once; each parent waits idle for its training, so more than the GPU queue."""
GPU_RUNS = 1
LOG_BYTES = 10_000_000
"""A log longer than this is moved to *.log.1 when its process starts."""
SAME_START_S = 2.0
"""Tolerance of the start time: Linux derives it from the clock, which time servers correct."""

Progress = Callable[[str, str], None]
"""Called with a step name and what became of it: `starting`, `ready (3.1 s)`, `already running`, …"""


class StackProcess(Schema):
    """One process of the stack, as written down when it was started."""

    name: str
    pid: int
    start_time: float
    """Seconds since the epoch, from the kernel; with the pid it names a process for ever."""
    log: str


class Stack(Schema):
    """What runs, and where it answers. `dead` names the parts that should answer and do not."""

    home: str
    prefect_api_url: str
    ui_url: str
    database_url: str | None = None
    """URL of the embedded PostgreSQL; None when DATABASE_URL names the server (its password stays there)."""
    processes: tuple[StackProcess, ...] = ()
    started_at: datetime
    registered: str = ""
    """Digest of the files that the deployments were registered from."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Duration of each step of the last `up`."""
    dead: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        return not self.dead

    def process(self, name: str) -> StackProcess | None:
        return next((item for item in self.processes if item.name == name), None)


def up(
    settings: Settings,
    on_progress: Progress = lambda step, state: None,
    *,
    prefect_file: Path = PROJECT_ROOT / "prefect.yaml",
    first_port: int = FIRST_PORT,
) -> Stack:
    """Start what does not run yet, wait until all of it answers, and return where it is.

    Attaches to what runs already and restarts only what died. When it fails or is interrupted, whatever
    this call started is stopped again.

    Raises: StoreError, OrchestratorUnavailable, ConfigError, each naming the log to read.
    """
    with _lock(settings, on_progress):
        starting = _Start(settings, on_progress, prefect_file, first_port)
        try:
            return starting.run()
        except BaseException:
            on_progress("stack", "stopping what was started")
            starting.undo()
            raise


def status(settings: Settings) -> Stack | None:
    """Return what runs, with `dead` filled in; None when nothing of the stack does. Takes under a second."""
    stack = _read(settings)
    if stack is None:
        return None
    dead = [item.name for item in stack.processes if _alive(item) is None]
    if len(dead) == len(stack.processes) and stack.processes:
        return None  # stopped by a reboot: the file is all that is left
    if "prefect-server" not in dead and not _answers(stack.prefect_api_url):
        dead.append("prefect-server")
    if stack.database_url is not None and not embedded.status(settings.home).running:
        dead.append("database")
    return stack.model_copy(update={"dead": tuple(dead)})


def down(settings: Settings, on_progress: Progress = lambda step, state: None) -> bool:
    """Stop everything that `up` started for this home; True when anything was running.

    Runs in progress are told to stop and get `RUN_STOP_S` to say so; a training resumes from its last
    checkpoint when its job is retried. Servers that DATABASE_URL and PREFECT_API_URL name are left alone.
    """
    with _lock(settings, on_progress):
        stack = _read(settings)
        stopped = False
        for item in reversed(stack.processes if stack else ()):
            # Reversed: workers first, so that their runs can still tell the server that they stopped.
            started = time.monotonic()
            if _stop(item):
                stopped = True
                on_progress(item.name, f"stopped ({time.monotonic() - started:.1f} s)")
            if item.name.startswith("worker") and (orphans := _runs_of(settings.home)):
                _end(orphans)  # of a worker that was killed
        if embedded.stop(settings.home):
            stopped = True
            on_progress("database", "stopped")
        _file(settings).unlink(missing_ok=True)
        return stopped


def database_url(settings: Settings) -> str:
    """Return the URL of the database, starting the embedded PostgreSQL when it is needed and not running."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return embedded.start(settings.home)


def prefect_api_url(settings: Settings) -> str:
    """Return the URL of the Prefect API. Raises OrchestratorUnavailable when there is none."""
    if settings.prefect_api_url:
        return settings.prefect_api_url.rstrip("/")
    stack = _read(settings)
    server = stack.process("prefect-server") if stack else None
    if stack is None or server is None or _alive(server) is None:
        raise OrchestratorUnavailable(
            "No Prefect server is running. Start the local stack with `ownvoice up`, or set PREFECT_API_URL."
        )
    return stack.prefect_api_url


# ---- starting --------------------------------------------------------------------------------------


class _Start:
    """One call of `up`: what was found, what was started, how long each step took.

    The server's start dominates. While it runs, another process imports the flows to register them, and
    this one starts the database; the workers follow as soon as their pools exist.
    """

    def __init__(self, settings: Settings, on_progress: Progress, prefect_file: Path, first_port: int):
        self.settings = settings
        self.on_progress = on_progress
        self.prefect_file = prefect_file
        self.first_port = first_port
        self.home = settings.home.expanduser().resolve()
        self.seconds: dict[str, float] = {}
        self.started: list[StackProcess] = []
        self.kept: list[StackProcess] = []
        self.started_database = False
        self.port_choice = ExitStack()
        """Holds others off while a port is chosen and not taken yet."""
        self.registration: subprocess.Popen[str] | None = None
        self.found = _read(settings)
        self.undecided = {item.name: item for item in (self.found.processes if self.found else ())}
        self.started_at = datetime.now(UTC)
        self.database_url: str | None = None
        self.api_url = ""
        self.registered = ""

    def run(self) -> Stack:
        for folder in (self.home, self.home / "logs", self.home / "prefect"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.found is not None and any(_alive(item) for item in self.found.processes):
            self.started_at = self.found.started_at
        server = self._server()
        fingerprint = _fingerprint(self.prefect_file, self.settings)
        known = self.found is not None and self.found.registered == fingerprint
        if not known or self.found is None or self.found.prefect_api_url != self.api_url:
            self.registration = self._start_registration()
        else:
            self.registered = fingerprint
            self.on_progress("deployments", "already registered")
        self._database()
        self._wait_for_server(server)
        self._wait_for_pools()
        since = time.time()
        workers = [
            self._worker("worker-cpu", self.settings.cpu_pool, CPU_RUNS, self._cpu_environment()),
            self._worker("worker-gpu", self.settings.gpu_pool, GPU_RUNS, self._gpu_environment()),
        ]
        if self.registration is not None:
            self._finish_registration(self.registration)
            self.registered = fingerprint
        for item, pool in zip(workers, (self.settings.cpu_pool, self.settings.gpu_pool), strict=True):
            if item is not None:
                self._wait_for_worker(item, pool, since)
        return self._write()

    def undo(self) -> None:
        self.port_choice.close()
        if self.registration is not None and self.registration.poll() is None:
            self.registration.kill()
            self.registration.wait()
        for item in reversed(self.started):
            _stop(item)
        if self.started_database:
            with suppress(OwnvoiceError):
                embedded.stop(self.settings.home)
        if self.kept:
            self.started.clear()
            self._write()
        else:
            _file(self.settings).unlink(missing_ok=True)

    # ---- the parts ---------------------------------------------------------------------------------

    def _database(self) -> None:
        started = time.monotonic()
        if self.settings.database_url is not None:
            self.on_progress("database", "DATABASE_URL")
            url = self.settings.database_url.get_secret_value()
        else:
            if embedded.status(self.settings.home).running:
                self.on_progress("database", "already running")
            else:
                self.on_progress("database", "starting")
                self.started_database = True
            url = self.database_url = embedded.start(self.settings.home)
            self._done("database", started, silent=not self.started_database)
        started = time.monotonic()
        database = open_database(url, sent_column=self.settings.sent_column)
        try:
            migrate(database)
        finally:
            database.close()
        self._done("migrations", started)

    def _server(self) -> StackProcess | None:
        if self.settings.prefect_api_url:
            self.api_url = self.settings.prefect_api_url.rstrip("/")
            self.on_progress("prefect-server", f"PREFECT_API_URL ({self.api_url})")
            return None
        port = None
        known = self.undecided.pop("prefect-server", None)
        if known is None or _alive(known) is None:
            self.port_choice.enter_context(_port_choice(self.on_progress))
        if self.found is not None and known is not None:
            if _alive(known) is not None:
                self.api_url = self.found.prefect_api_url
                self.kept.append(known)
                return known
            # Workers that survived their server know only its old address.
            port = httpx.URL(self.found.prefect_api_url).port or self.first_port
            # A server that was just killed lets go of it a moment later.
            deadline = time.monotonic() + IDLE_STOP_S
            while not _is_free(port) and time.monotonic() < deadline:
                time.sleep(0.1)
        if port is None or not _is_free(port):
            port = _free_port(self.first_port)
        self.api_url = f"http://127.0.0.1:{port}/api"
        self.on_progress("prefect-server", "starting")
        command = ["-m", "app.prefect_server", "--host", "127.0.0.1", "--port", str(port)]
        return self._spawn("prefect-server", command, self._server_environment())

    def _wait_for_server(self, server: StackProcess | None) -> None:
        started = time.monotonic()
        while not (_answers(self.api_url) and (server is None or _listens(server, self.api_url))):
            if server is None:
                raise OrchestratorUnavailable(
                    f"The Prefect server at {self.api_url} does not answer. Correct PREFECT_API_URL, or "
                    "unset it to run an embedded one."
                )
            if _alive(server) is None:
                raise OrchestratorUnavailable(f"The Prefect server stopped while starting. {_last(server)}")
            if time.monotonic() - started > SERVER_START_S:
                raise OrchestratorUnavailable(
                    f"The Prefect server does not answer after {SERVER_START_S:.0f} s. {_last(server)}"
                )
            time.sleep(0.1)
        self.port_choice.close()
        if server in self.started:
            self._done("prefect-server", self._spawned_at(server))
        elif server is not None:
            self.on_progress("prefect-server", "already running")

    def _start_registration(self) -> subprocess.Popen[str]:
        self.on_progress("deployments", "registering")
        self._registration_started = time.monotonic()
        script = PROJECT_ROOT / "deployments" / "register.py"
        command = [sys.executable, str(script), "--api-url", self.api_url]
        command += ["--prefect-file", str(self.prefect_file), "--wait", str(SERVER_START_S)]
        with self._log("register").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.PIPE,
                text=True,
                env=self._cpu_environment(database=False),
                cwd=PROJECT_ROOT,
                start_new_session=True,
            )

    def _finish_registration(self, registration: subprocess.Popen[str]) -> None:
        _, errors = registration.communicate(timeout=SERVER_START_S)
        if registration.returncode != 0:
            lines = [line for line in (errors or "").strip().splitlines() if line.strip()]
            kind = (
                ConfigError if registration.returncode == ConfigError.exit_code else OrchestratorUnavailable
            )
            raise kind(lines[-1] if lines else "The deployments could not be registered.")
        self._done("deployments", self._registration_started)

    def _wait_for_pools(self) -> None:
        deadline = time.monotonic() + WORKER_START_S
        # The GPU pool is made last; a known registration means that both are there.
        while self.registration is not None and self._pool_type(self.settings.gpu_pool) is None:
            if self.registration.poll() is not None:
                self._finish_registration(self.registration)
            if time.monotonic() > deadline:
                raise OrchestratorUnavailable(
                    f"The work pools do not exist after {WORKER_START_S:.0f} s. See {self._log('register')}."
                )
            time.sleep(0.1)

    def _worker(self, name: str, pool: str, runs: int, environment: dict[str, str]) -> StackProcess | None:
        known = self.undecided.pop(name, None)
        if (kind := self._pool_type(pool)) != "process":
            self.on_progress(
                name, f"not started: the pool {pool} is of type {kind}, its own workers serve it"
            )
            if known is not None:
                _stop(known)
            return None
        process = _alive(known) if known is not None else None
        if known is not None and process is not None and self._may_keep(known):
            self.kept.append(known)
            changed = _changed(process, environment)
            hint = f"; `ownvoice down`, then `up` to apply {', '.join(changed)}" if changed else ""
            self.on_progress(name, f"already running{hint}")
            return known
        if known is not None:
            _stop(known)
        self.on_progress(name, "starting")
        command = ["-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
        command += ["--name", f"{platform.node() or 'local'}-{pool}", "--limit", str(runs)]
        return self._spawn(name, command, environment)

    def _may_keep(self, worker: StackProcess) -> bool:
        """A worker that lost its server pauses longer and longer: replace it unless it has a live run."""
        assert self.found is not None
        if self.found.prefect_api_url != self.api_url:
            return False
        server_is_new = any(item.name == "prefect-server" for item in self.started)
        return not server_is_new or len(_session(worker)) > 1

    def _wait_for_worker(self, item: StackProcess, pool: str, since: float) -> None:
        """Wait until the worker has reported since `since` (a kept one: within the minute before)."""
        worker_name = f"{platform.node() or 'local'}-{pool}"
        fresh = since if item in self.started else since - 60
        deadline = time.monotonic() + WORKER_START_S
        while True:
            heartbeat = self._heartbeat(pool, worker_name)
            if heartbeat is not None and heartbeat >= fresh:
                break
            if _alive(item) is None:
                raise OrchestratorUnavailable(f"The worker {item.name} stopped while starting. {_last(item)}")
            if time.monotonic() > deadline:
                raise OrchestratorUnavailable(
                    f"The worker {item.name} is not online after {WORKER_START_S:.0f} s. {_last(item)}"
                )
            time.sleep(0.1)
        if item in self.started:
            self._done(item.name, self._spawned_at(item))

    # ---- environments ------------------------------------------------------------------------------

    def _common_environment(self) -> dict[str, str]:
        """Variables of every Prefect process; what phones home is off."""
        return {
            "OWNVOICE_HOME": str(self.home),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_HOME": str(self.home / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_CLI_PROMPT": "false",
            "PREFECT_LOGGING_COLORS": "false",
            "PYTHONUNBUFFERED": "1",
            # Flow runs are started with the interpreter of the worker, and their steps may call its tools.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        }

    def _server_environment(self) -> dict[str, str]:
        # No secret of ours has any business in the server; PREFECT_SERVER_* of the user stay in force.
        environment = {key: value for key, value in os.environ.items() if key not in SECRETS}
        environment |= self._common_environment()
        environment.setdefault(
            "PREFECT_SERVER_DATABASE_CONNECTION_URL",
            f"sqlite+aiosqlite:///{self.home / 'prefect' / 'prefect.db'}",
        )
        environment["PREFECT_SERVER_LOGGING_LEVEL"] = "WARNING"
        environment["PREFECT_SERVER_UI_API_URL"] = self.api_url
        return environment

    def _worker_environment(self) -> dict[str, str]:
        environment = self._common_environment()
        # A run starts at the next poll: 1 s instead of Prefect's 10. One local server carries that easily.
        environment["PREFECT_WORKER_QUERY_SECONDS"] = "1"
        environment["PREFECT_WORKER_HEARTBEAT_SECONDS"] = "10"
        environment["OWNVOICE_STORAGE_URL"] = self.settings.storage_url or (self.home / "storage").as_posix()
        if self.settings.prefect_api_auth_string is not None:
            environment["PREFECT_API_AUTH_STRING"] = self.settings.prefect_api_auth_string.get_secret_value()
        return environment

    def _cpu_environment(self, *, database: bool = True) -> dict[str, str]:
        environment = {**os.environ, **self._worker_environment()}
        url = (
            self.settings.database_url.get_secret_value() if self.settings.database_url else self.database_url
        )
        if database and url is not None:
            environment["DATABASE_URL"] = url
        return environment

    def _gpu_environment(self) -> dict[str, str]:
        """A list of what passes, not of what is held back: the next secret must not slip through."""
        passed = {key: value for key, value in os.environ.items() if _passes_to_gpu(key)}
        passed |= self._worker_environment() | {"OWNVOICE_ENV_FILE": ""}
        return passed | allocator_environment(passed)

    # ---- processes ---------------------------------------------------------------------------------

    def _spawn(self, name: str, arguments: list[str], environment: Mapping[str, str]) -> StackProcess:
        log = self._log(name)
        with suppress(FileNotFoundError):
            if log.stat().st_size > LOG_BYTES:
                log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as output:
            child = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=PROJECT_ROOT,
                # Its own session: Ctrl-C in the terminal of `up` or `train --follow` must not reach it.
                start_new_session=True,
            )
        item = StackProcess(
            name=name, pid=child.pid, start_time=psutil.Process(child.pid).create_time(), log=str(log)
        )
        self.started.append(item)
        # Written at once: should this process be killed, `down` still finds what it started.
        self._write()
        return item

    def _log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    def _spawned_at(self, item: StackProcess) -> float:
        return time.monotonic() - (time.time() - item.start_time)

    def _done(self, step: str, started: float, *, silent: bool = False) -> None:
        self.seconds[step] = round(time.monotonic() - started, 2)
        if not silent:
            self.on_progress(step, f"ready ({self.seconds[step]:.1f} s)")

    def _write(self) -> Stack:
        order = {"prefect-server": 0, "worker-cpu": 1, "worker-gpu": 2}
        known = self.undecided | {item.name: item for item in (*self.kept, *self.started)}
        stack = Stack(
            home=str(self.home),
            prefect_api_url=self.api_url,
            ui_url=self.api_url.removesuffix("/api"),
            database_url=self.database_url,
            processes=tuple(sorted(known.values(), key=lambda item: order[item.name])),
            started_at=self.started_at,
            registered=self.registered,
            seconds=self.seconds,
        )
        path = _file(self.settings)
        fresh = path.with_suffix(".tmp")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(stack.to_json_dict(), file, indent=2)
        fresh.replace(path)
        return stack

    def _get(self, method: str, path: str, body: object = None) -> httpx.Response | None:
        auth = self.settings.prefect_api_auth_string
        user, _, password = (auth.get_secret_value() if auth else "").partition(":")
        try:
            return httpx.request(
                method,
                f"{self.api_url}/{path}",
                json=body,
                timeout=10,
                auth=(user, password) if auth else None,
            )
        except httpx.TransportError:
            return None

    def _pool_type(self, pool: str) -> str | None:
        response = self._get("GET", f"work_pools/{pool}")
        return response.json()["type"] if response is not None and response.is_success else None

    def _heartbeat(self, pool: str, worker_name: str) -> float | None:
        """Return when the worker last reported, in seconds since the epoch."""
        response = self._get("POST", f"work_pools/{pool}/workers/filter", {})
        if response is None or not response.is_success:
            return None
        for worker in response.json():
            if worker["name"] == worker_name and worker.get("last_heartbeat_time"):
                return datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp()
        return None


SECRETS = frozenset({"DATABASE_URL", "INTERNAL_API_KEY", "FINE_TUNING_WEBHOOK_URL", "VASTAI_API_KEY"})
"""Variables of the owner's documents that only the CPU side may hold."""
GPU_NAMES = frozenset(
    {"HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "SHELL", "TERM", "CI", "VIRTUAL_ENV"}
    | {"LD_LIBRARY_PATH", "LD_PRELOAD", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"}
    | {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"}
)
GPU_PREFIXES = (
    *("OWNVOICE_", "PREFECT_", "PYTHON", "LC_", "XDG_"),
    *("CUDA_", "NVIDIA_", "HIP_", "ROCM_", "TORCH", "PYTORCH_", "OMP_", "MKL_", "OPENBLAS_", "BNB_"),
    *("HF_", "TRANSFORMERS_", "TOKENIZERS_"),
    # The storage of the job folders is the one thing that a GPU machine has a key to.
    *("AWS_", "FSSPEC_", "GOOGLE_", "AZURE_"),
)
"""What a training needs: the machine's own variables, the accelerator, the base model, the storage."""


def _passes_to_gpu(name: str) -> bool:
    if name.startswith("PREFECT_SERVER_") or "DATABASE" in name or "WEBHOOK" in name:
        return False
    if name.startswith("OWNVOICE_") and any(word in name for word in ("KEY", "SECRET", "TOKEN", "PASSWORD")):
        return False
    return name in GPU_NAMES or name.startswith(GPU_PREFIXES)


def _changed(process: psutil.Process, environment: Mapping[str, str]) -> list[str]:
    """Return the names of our settings whose value differs from what the running process was given."""
    try:
        running = process.environ()
    except psutil.Error:
        return []
    ours = SECRETS | {"OLLAMA_BASE_URL"}
    names = {name for name in (*running, *environment) if name in ours or name.startswith("OWNVOICE_")}
    return sorted(name for name in names if running.get(name) != environment.get(name))


# ---- stopping and looking --------------------------------------------------------------------------


def _alive(item: StackProcess) -> psutil.Process | None:
    """Return the live process of `item`; None when it ended or its pid belongs to another one now."""
    try:
        process = psutil.Process(item.pid)
        if abs(process.create_time() - item.start_time) > SAME_START_S:
            return None
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.Error:
        return None


def _stop(item: StackProcess) -> bool:
    """Stop a process and all it started; True when any of it was running.

    A worker with a live run ignores one SIGTERM (it waits for the run), and a second one makes it kill the
    run without a word to the server. So the worker is asked once, then its runs, then all that is left is
    killed.
    """
    process = _alive(item)
    family = _session(item)
    if process is None and not family:
        return False
    if process is not None:
        with suppress(psutil.Error):
            process.send_signal(signal.SIGTERM)
        has_run = len(family) > 1
        psutil.wait_procs([process], timeout=1.0 if has_run else IDLE_STOP_S)
    _end([member for member in {*family, *_session(item)} if member.pid != item.pid])
    rest = list({*family, *_session(item)})
    for member in rest:
        with suppress(psutil.Error):
            if member.is_running():
                member.kill()
    psutil.wait_procs(rest, timeout=IDLE_STOP_S)
    return True


def _end(runs: list[psutil.Process]) -> None:
    """Tell flow runs to stop, give them `RUN_STOP_S` to say so, then kill what is left."""
    for run in runs:
        with suppress(psutil.Error):
            run.send_signal(signal.SIGTERM)
    for run in psutil.wait_procs(runs, timeout=RUN_STOP_S)[1]:
        with suppress(psutil.Error):
            run.kill()


def _runs_of(home: Path) -> list[psutil.Process]:
    """Return the live flow runs of the home's workers, also of a worker that died before them.

    They lead sessions of their own, so only their environment tells whose they are.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "prefect" not in " ".join(process.cmdline()) or process.status() == psutil.STATUS_ZOMBIE:
                continue
            environment = process.environ()
            if environment.get("OWNVOICE_HOME") == str(home) and "PREFECT__FLOW_RUN_ID" in environment:
                found.append(process)
    return found


def _session(item: StackProcess) -> list[psutil.Process]:
    """Return the live processes of the session that `item` leads, also those that outlived it, and all that
    it has started.

    The kernel does not give a pid away while a session of that number has members, so they are ours unless
    a newer process with that pid exists.
    """
    if psutil.pid_exists(item.pid):
        try:
            if abs(psutil.Process(item.pid).create_time() - item.start_time) > SAME_START_S:
                return []
        except psutil.Error:
            pass
    members = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == item.pid and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    if (leader := _alive(item)) is not None:
        with suppress(psutil.Error):
            # A worker's flow runs lead sessions of their own.
            members += [child for child in leader.children(recursive=True) if child not in members]
    return members


def _answers(api_url: str) -> bool:
    try:
        return httpx.get(f"{api_url}/ready", timeout=5).is_success
    except httpx.HTTPError:
        return False


def _listens(server: StackProcess, api_url: str) -> bool:
    """Tell whether it is our server that answers there, and not another's that took the port first."""
    port = httpx.URL(api_url).port
    leader = _alive(server)
    for process in [leader, *leader.children(recursive=True)] if leader is not None else []:
        with suppress(psutil.Error):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                    return True
    return False


@contextmanager
def _port_choice(on_progress: Progress) -> Iterator[None]:
    """Be the only `up` of this user that chooses a port, until its server listens there.

    Two that start in the same second would both find it free. Where the lock cannot be had the loser finds
    out by `_listens`. Raises OrchestratorUnavailable.
    """
    lock = Path(tempfile.gettempdir()) / f"ownvoice-port-{os.getuid()}.lock"
    waiting = "waiting for another `ownvoice up` to take its port"
    with ExitStack() as held:
        with suppress(OSError):
            held.enter_context(_locked(lock, waiting, SERVER_START_S, on_progress))
        yield


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # A port that a stopped server left in TIME_WAIT is free; uvicorn binds with the same option.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port(first: int) -> int:
    last = max(LAST_PORT, first + 99)
    for port in range(first, last + 1):
        if _is_free(port):
            return port
    raise OrchestratorUnavailable(
        f"No port from {first} to {last} is free for the Prefect server. Stop what uses them, or set "
        "PREFECT_API_URL to a server that runs."
    )


def _fingerprint(prefect_file: Path, settings: Settings) -> str:
    """Digest what a registration is made from: YAML, script, templates, flow files and these settings."""
    used = (settings.cpu_pool, settings.gpu_pool, settings.timezone, settings.zombie_after_s)
    digest = hashlib.sha256(repr((*used, settings.serving_limit)).encode())
    files = [prefect_file, PROJECT_ROOT / "deployments" / "register.py"]
    files += sorted((PROJECT_ROOT / "deployments" / "pools").glob("*.json"))
    files += sorted((PROJECT_ROOT / "flows").glob("*.py"))
    for file in files:
        if file.exists():
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _last(item: StackProcess) -> str:
    """Return a sentence with the last line of a log and where the rest is."""
    try:
        lines = Path(item.log).read_text(encoding="utf-8", errors="replace")[-4000:].split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    except OSError:
        said = ""
    return f"Its last words: {said[:200]!r}. See {item.log}."


def _file(settings: Settings) -> Path:
    return settings.home.expanduser().resolve() / "stack.json"


def _read(settings: Settings) -> Stack | None:
    try:
        return Stack.model_validate_json(_file(settings).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        # ValueError: a file of another version. What it described is found again by its ports, not by guess.
        return None


@contextmanager
def _lock(settings: Settings, on_progress: Progress) -> Iterator[None]:
    """Hold the lock of this home; waits for another `up` or `down`. Raises OrchestratorUnavailable."""
    home = settings.home.expanduser().resolve()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(home / "stack.lock", "waiting for another `ownvoice up` or `down`", LOCK_S, on_progress):
        yield


@contextmanager
def _locked(path: Path, waiting: str, timeout_s: float, on_progress: Progress) -> Iterator[None]:
    """Hold the lock file; say `waiting` while another process has it. Raises OrchestratorUnavailable."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600), "a") as file:
        deadline = time.monotonic() + timeout_s
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    on_progress("stack", waiting)
                    told = True
                if time.monotonic() > deadline:
                    raise OrchestratorUnavailable(
                        f"Another `ownvoice up` or `down` has held {path} for {timeout_s:.0f} s. "
                        "Wait for it or end it, then try again."
                    ) from None
                time.sleep(0.2)
        yield
