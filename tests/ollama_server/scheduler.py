"""Loaded runners: one per base model file, whatever adapters the models on it have.

`server/sched.go` of Ollama 0.33.0-rc2: requests that fit the loaded runner pass at once; any other waits in
one serial queue until the runner is idle, and the runner is then ended and started again. So a steady
stream for one adapter starves another on the same base.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.ollama_server.model_store import StoredModel

DEFAULT_KEEP_ALIVE_S = 300.0
DEFAULT_NUM_CTX = 4096
MAX_RUNNERS = 3
"""OLLAMA_MAX_LOADED_MODELS on a machine without GPU."""
LOAD_TIMEOUT_S = 300.0
_ERROR_PREFIXES = ("panic:", "fatal error:", "error:", "Error:", "error loading model", "GGML_ASSERT")
"""Of a runner's log, Ollama repeats only what follows one of these (`llm/status.go`)."""


class RunnerFailed(Exception):
    """The runner did not start, or died; the text is Ollama's."""


class RunnerRefused(Exception):
    """The runner answered with an error; `status` and body go to the client."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Gone(Exception):
    """The client hung up while it waited."""


@dataclass
class Runner:
    """One process and what it was started with."""

    model: StoredModel
    num_ctx: int
    num_ctx_is_default: bool
    context_shift: bool
    other_options: tuple[Any, ...]
    process: subprocess.Popen[str] | None = None
    address: str = ""
    log: list[str] = field(default_factory=list)
    users: int = 0
    keep_alive_s: float = DEFAULT_KEEP_ALIVE_S
    expires_at: float = 0.0
    timer: threading.Timer | None = None
    turn: threading.Lock = field(default_factory=threading.Lock)
    """OLLAMA_NUM_PARALLEL=1: one generation at a time."""

    def start(self, threads: int) -> None:
        """Raises RunnerFailed with Ollama's text when llama.cpp refuses the model or an adapter."""
        arguments = {
            "model": str(self.model.model_path),
            "adapters": [str(path) for path in self.model.adapter_paths],
            "num_ctx": self.num_ctx,
            "context_shift": self.context_shift,
            "threads": threads,
        }
        script = Path(__file__).with_name("runner.py")
        # -P: the script's folder must not be searched for modules.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(script), json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        reader = threading.Thread(target=self._read_log, args=(self.process,), daemon=True)
        reader.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("ready "):
            code = self.process.wait(LOAD_TIMEOUT_S)
            reader.join(5)
            said = "\n".join(filter(None, map(_error_part, self.log)))
            status = f"exit status {code}" if code >= 0 else f"signal {-code}"
            raise RunnerFailed(
                f"llama-server process has terminated: {status}" + (f": {said}" if said else "")
            )
        self.address = urlsplit(line.split()[1]).netloc

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.log.append(line.rstrip())

    def stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()

    def tokenize(self, text: str) -> list[int]:
        answer = self._post("/tokenize", {"content": text, "add_special": True})
        tokens: list[int] = json.loads(answer.read())["tokens"]
        return tokens

    def apply_own_template(self, messages: list[dict[str, str]]) -> str:
        """Render with the GGUF's own jinja template: the only path that inserts a default system prompt."""
        answer = self._post("/apply-template", {"messages": messages})
        return str(json.loads(answer.read())["prompt"])

    def complete(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the events of llama.cpp's /completion stream. Raises RunnerRefused or RunnerFailed."""
        answer = self._post("/completion", request)
        try:
            for line in answer:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])
        except (OSError, http.client.HTTPException) as exc:
            raise RunnerFailed(f"an error was encountered while running the model: {exc}") from exc
        finally:
            answer.close()

    def _post(self, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self.address, timeout=600)
        try:
            headers = {"Content-Type": "application/json", "Connection": "close"}
            connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as exc:
            raise RunnerFailed(
                "model runner has unexpectedly stopped, this may be due to resource limitations or an "
                "internal error, check ollama server logs for details"
            ) from exc
        if answer.status >= 400:
            raise RunnerRefused(answer.read().decode().strip(), answer.status)
        return answer


class Scheduler:
    """Hands out runners; `loaded` maps the base model's file to its one runner."""

    def __init__(self, threads: int = 1) -> None:
        self.loaded: dict[Path, Runner] = {}
        self.loads = 0
        """How many runner processes were started: what a test counts to see a reload."""
        self._threads = threads
        self._changed = threading.Condition()
        self._queue = threading.Lock()

    @contextmanager
    def runner(
        self,
        model: StoredModel,
        options: dict[str, Any],
        *,
        keep_alive_s: float | None,
        context_shift: bool,
        is_gone: Callable[[], bool],
    ) -> Iterator[Runner]:
        """Give a runner for `model`, loading it when the present one differs. Raises RunnerFailed or Gone."""
        wanted = _wanted_runner(model, options, context_shift)
        runner = self._take_if_fitting(wanted, keep_alive_s)
        if runner is None:
            # The real queue is one goroutine that takes request after request: whoever waits for a reload
            # keeps all others that need one behind it.
            with self._queue:
                runner = self._take_or_load(wanted, keep_alive_s, is_gone)
        try:
            yield runner
        finally:
            self._release(runner)

    def expire(self, model: StoredModel) -> None:
        """Unload the base of `model` now, or as soon as it is idle."""
        with self._changed:
            runner = self.loaded.get(model.model_path)
            if runner is not None:
                runner.keep_alive_s = 0.0
                if runner.users == 0:
                    self._drop(runner)

    def stop(self) -> None:
        with self._changed:
            for runner in list(self.loaded.values()):
                self._drop(runner)

    def _take_if_fitting(self, wanted: Runner, keep_alive_s: float | None) -> Runner | None:
        with self._changed:
            runner = self.loaded.get(wanted.model.model_path)
            if runner is None or _needs_reload(runner, wanted):
                return None
            runner.users += 1
            if runner.timer is not None:
                runner.timer.cancel()
            if keep_alive_s is not None:
                runner.keep_alive_s = keep_alive_s
            return runner

    def _take_or_load(
        self, wanted: Runner, keep_alive_s: float | None, is_gone: Callable[[], bool]
    ) -> Runner:
        while True:
            if is_gone():
                raise Gone
            runner = self._take_if_fitting(wanted, keep_alive_s)
            if runner is not None:
                return runner
            with self._changed:
                in_the_way = self.loaded.get(wanted.model.model_path)
                if in_the_way is None and len(self.loaded) >= MAX_RUNNERS:
                    in_the_way = min(self.loaded.values(), key=lambda item: (item.users, item.expires_at))
                if in_the_way is None:
                    break
                in_the_way.keep_alive_s = 0.0
                if in_the_way.users == 0:
                    self._drop(in_the_way)
                else:
                    self._changed.wait(0.1)
        self.loads += 1
        try:
            wanted.start(self._threads)
        except RunnerFailed:
            wanted.stop()
            raise
        with self._changed:
            wanted.keep_alive_s = DEFAULT_KEEP_ALIVE_S if keep_alive_s is None else keep_alive_s
            wanted.expires_at = time.time() + wanted.keep_alive_s
            wanted.users = 1
            self.loaded[wanted.model.model_path] = wanted
        return wanted

    def _release(self, runner: Runner) -> None:
        with self._changed:
            runner.users -= 1
            runner.expires_at = time.time() + runner.keep_alive_s
            if runner.users == 0 and self.loaded.get(runner.model.model_path) is runner:
                if runner.keep_alive_s <= 0:
                    self._drop(runner)
                elif runner.keep_alive_s < threading.TIMEOUT_MAX:
                    runner.timer = threading.Timer(runner.keep_alive_s, self._expire_idle, (runner,))
                    runner.timer.daemon = True
                    runner.timer.start()
            self._changed.notify_all()

    def _expire_idle(self, runner: Runner) -> None:
        with self._changed:
            if runner.users == 0 and time.time() >= runner.expires_at - 0.01:
                self._drop(runner)

    def _drop(self, runner: Runner) -> None:
        if self.loaded.get(runner.model.model_path) is runner:
            del self.loaded[runner.model.model_path]
            runner.stop()
        self._changed.notify_all()


def _wanted_runner(model: StoredModel, options: dict[str, Any], context_shift: bool) -> Runner:
    header = model.header
    trained = int(header.kv.get(f"{header.architecture}.context_length", 0)) or DEFAULT_NUM_CTX
    num_ctx = max(int(options.get("num_ctx") or DEFAULT_NUM_CTX), 4)
    others = tuple(options.get(key) for key in ("num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread"))
    return Runner(model, min(num_ctx, trained), "num_ctx" not in options, context_shift, others)


def _needs_reload(loaded: Runner, wanted: Runner) -> bool:
    same_num_ctx = loaded.num_ctx == wanted.num_ctx or (
        loaded.num_ctx_is_default and wanted.num_ctx_is_default
    )
    alive = loaded.process is not None and loaded.process.poll() is None
    return not (
        alive
        and same_num_ctx
        and loaded.model.adapter_paths == wanted.model.adapter_paths
        and loaded.context_shift == wanted.context_shift
        and loaded.other_options == wanted.other_options
    )


def _error_part(line: str) -> str:
    found = [(line.find(prefix), prefix) for prefix in _ERROR_PREFIXES if prefix in line]
    return line[min(found)[0] :].rstrip() if found else ""
