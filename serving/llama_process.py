"""llama.cpp's server (xllamacpp) in a process of its own: both ends of it.

A crash of the engine (a bad adapter, no memory) must not take a flow run or the web app with it, and
llama.cpp reads its adapters only at start. So the parent starts `python -m serving.llama_process`, writes one
JSON line of configuration to its standard input and keeps that pipe open. The child answers with one JSON
line on its standard output as soon as it serves on a free port of 127.0.0.1. When the parent dies, however it
dies, the pipe closes and the child leaves. (PR_SET_PDEATHSIG would also fire when the *thread* that started
the child ends.) The configuration carries a key that every request must show: other users of the machine
cannot ask.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import httpx

_LOAD_FAILED = 3  # exit code of a child whose engine refused its files
_STOP_SECONDS = 5.0
# llama.cpp's threads wait for each other by spinning. By default that is long enough (300 000 rounds) to be
# descheduled while spinning when the machine is busy: with two other busy processes on two processors an
# answer of 24 tokens took 1 to 70 s; with 1000 rounds 0.8 s, and 0.2 s on the quiet machine either way.
_SPIN_COUNT = "1000"


class LoadFailed(Exception):
    """The child ended before it served. `exit_code` is negative for a signal; the reason is in its log."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


class StartTimeout(Exception):
    """The child did not serve in time and was stopped."""


class RequestRefused(Exception):
    """The engine answered with an HTTP error; `error` is llama-server's error object."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.error = error


class LlamaProcess:
    """A running engine with a fixed list of adapters; the index in that list is the adapter's id."""

    def __init__(
        self,
        base_gguf: Path,
        adapters: Sequence[Path],
        *,
        context_tokens: int,
        threads: int,
        log: Path,
        start_timeout_s: float,
    ) -> None:
        """Start it and wait until it serves. Raises LoadFailed, StartTimeout or OSError."""
        self.adapters = len(adapters)
        api_key = secrets.token_hex(16)
        with log.open("ab") as log_file:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "serving.llama_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                # `-m` looks in the working directory first, where any folder could be named serving.
                cwd=Path(__file__).resolve().parent.parent,
                # Ctrl-C in a terminal is for the parent, which decides what to do with the child.
                start_new_session=True,
                env={"GOMP_SPINCOUNT": _SPIN_COUNT, **os.environ},
            )
        try:
            config = {
                "base_gguf": str(base_gguf.resolve()),
                "adapters": [str(path.resolve()) for path in adapters],
                "context_tokens": context_tokens,
                "threads": threads,
                "api_key": api_key,
            }
            assert self._child.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # died at once: the missing answer tells
                self._child.stdin.write(json.dumps(config).encode() + b"\n")
                self._child.stdin.flush()
            address = self._await_address(start_timeout_s)
        except BaseException:
            self.stop()
            raise
        self._http = httpx.Client(
            base_url=address,
            headers={"Authorization": f"Bearer {api_key}"},
            # One connection per request: kept-alive ones were seen to be dropped between two requests.
            limits=httpx.Limits(max_keepalive_connections=0),
            # Proxy settings of the environment are not for a child on this machine.
            trust_env=False,
        )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def post(self, path: str, body: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Return the engine's JSON answer.

        Raises RequestRefused for an HTTP error, httpx.TimeoutException after `timeout_s`, and
        httpx.TransportError when the process is gone.
        """
        try:
            response = self._http.post(path, json=body, timeout=httpx.Timeout(timeout_s, connect=5.0))
        except RuntimeError as exc:  # httpx's word for a client that another thread closed just before
            raise httpx.TransportError("the engine was stopped") from exc
        try:
            answer = response.json()
        except ValueError:
            answer = {}
        if response.is_error:
            error = answer.get("error") if isinstance(answer, dict) else None
            raise RequestRefused(response.status_code, error if isinstance(error, dict) else {})
        if not isinstance(answer, dict):
            raise RequestRefused(response.status_code, {"message": "the answer is not a JSON object"})
        return answer

    def stop(self) -> None:
        """End the process and wait for it; calling it again does nothing."""
        if hasattr(self, "_http"):
            self._http.close()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()

    def _await_address(self, timeout_s: float) -> str:
        assert self._child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                raise StartTimeout
        line = self._child.stdout.readline()
        if not line:
            raise LoadFailed(self._child.wait(_STOP_SECONDS))
        return str(json.loads(line)["address"])


# ---- the child's end -------------------------------------------------------------------------------


def main() -> NoReturn:
    """Serve until the parent is gone."""
    config = json.loads(sys.stdin.readline())
    # llama.cpp prints to both standard streams: keep the pipe for the answer, send its prints to the log.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        server = _serve(config)
    except RuntimeError:
        os._exit(_LOAD_FAILED)  # a normal exit would wait for the engine's threads
    answer.write(json.dumps({"address": server.listening_address}) + "\n")
    answer.close()
    while True:
        time.sleep(3600)


def _serve(config: dict[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = config["base_gguf"]
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in config["adapters"]]
    params.n_ctx = config["context_tokens"]
    params.n_parallel = 1
    params.cpuparams.n_threads = config["threads"]
    params.cpuparams_batch.n_threads = config["threads"]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [config["api_key"]]
    # The RAM prompt cache is not keyed by adapter: with it one user's prompt is continued from a state that
    # another user's adapter computed (measured: log-probabilities off by 0.8 to 2.4).
    params.cache_ram_mib = 0
    params.endpoint_slots = False  # would show prompts
    params.ui = False
    params.verbosity = 1  # errors only; higher levels may print prompts
    return xllamacpp.Server(params)


def _leave_with_parent(parent: int) -> None:
    """End this process when the parent's pipe closes or the parent is not the parent any more.

    The second look is for a pipe that a forked sibling still holds open.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        while os.getppid() == parent:
            if selector.select(1.0) and not os.read(0, 1):
                break
    os._exit(0)


if __name__ == "__main__":
    main()
