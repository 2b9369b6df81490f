"""The embedded engine: llama.cpp with several adapters on one base, each request naming its own.

Nothing to install and nothing to start: the first request starts the engine in a process of its own
(`serving.llama_process`, about 0.4 s with a 98 MB base), and an adapter that it does not hold restarts it.
At most `max_loaded` adapters stay in memory (about 10 MB each at rank 16); the least recently asked leaves.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx

from serving.adapter_file import file_digest, inspect_adapter
from serving.adapter_folder import AdapterFolder, PublishedAdapter, refuse_other_digest, write_atomically
from serving.checks import (
    WARM_UP_MESSAGES,
    WARM_UP_OPTIONS,
    answer_cut,
    check_messages,
    check_name,
    check_same_prompt,
    context_exceeded,
    redact,
)
from serving.llama_process import LlamaProcess, LoadFailed, RequestRefused, StartTimeout
from training.errors import AdapterRefused, ServingError, ServingUnavailable
from training.schemas import ChatMessage, Generated, GenerateOptions, Published, ServedModel

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_LOG_LIMIT_BYTES = 1_000_000


class LlamaCppServing:
    """`serving.base.Serving` on this machine. Safe for several threads and several processes."""

    engine = "llamacpp"
    at_once = 1

    def __init__(
        self,
        base_gguf: Path,
        adapters_dir: Path,
        *,
        context_tokens: int = 2048,
        threads: int | None = None,
        expected_prompt: Callable[[list[ChatMessage]], str] | None = None,
        max_loaded: int = 8,
        timeout_s: float = 300.0,
        start_timeout_s: float = 300.0,
    ) -> None:
        """Remember the places; nothing is started or written yet.

        `expected_prompt` renders messages with the training template; `verify` compares it with what the
        base's own template makes of them. `threads`: None means the processors that this process may use.
        `timeout_s` bounds one answer, `start_timeout_s` the loading of the base.
        """
        self._base_gguf = base_gguf
        self._folder = AdapterFolder(adapters_dir)
        self._context_tokens = context_tokens
        self._threads = threads or usable_processors()
        self._max_loaded = max_loaded
        self._expected_prompt = expected_prompt
        self._timeout_s = timeout_s
        self._start_timeout_s = start_timeout_s
        # One request at a time: the engine has one slot, and a restart must not cut another thread's answer.
        self._lock = threading.RLock()
        self._process: LlamaProcess | None = None
        self._closing = False
        self._loaded: list[PublishedAdapter] = []
        """What the process holds; the position is the engine's adapter id."""
        self._recent: list[str] = []
        """Names by last use, newest last."""
        self._known_base: tuple[tuple[int, int], str] | None = None

    # ---- the seam ----------------------------------------------------------------------------------

    def base_ready(self) -> None:
        """Start the engine when it is not running. Raises ServingUnavailable with the reason."""
        self._ask(None, lambda process: process.post("/tokenize", {"content": "ready"}, timeout_s=30.0))

    def base_digest(self) -> str:
        """Return the SHA-256 of the base's file. Raises ServingUnavailable when it is missing."""
        return self._base_digest()

    def publish(self, adapter: Path, name: str) -> Published:
        """Try the file alone in a throw-away process, then place it in the folder under `name`.

        A wrong file stops llama.cpp at start, so it must never reach the process that serves the others.
        Raises AdapterRefused for a file that does not fit the base and for a name that means another adapter.
        """
        check_name(name)
        inspect_adapter(adapter)
        self.base_ready()  # from here on, a process that does not start is the adapter's fault
        with self._folder.stage(adapter) as (copy, digest):
            published = Published(name=name, digest=digest, engine=self.engine)
            present = self._folder.read(name)
            refuse_other_digest(present, digest)
            if present is not None and self._is_intact(present):
                return published
            self._try_out(copy, name)
            base_digest = self._base_digest()
            self._folder.add(copy, PublishedAdapter(name=name, digest=digest, base_digest=base_digest))
        return published

    def verify(self, name: str, digest: str) -> None:
        """Compare manifest, file, base and prompt, then generate. Raises ServingError otherwise."""
        manifest = self._published(name)
        if manifest.digest != digest:
            raise ServingError(
                f"{name} is published with {manifest.digest}, not with {digest}. Publish it again."
            )
        self._check_intact(manifest)
        if self._expected_prompt is not None:
            check_same_prompt(
                name, self.render([*WARM_UP_MESSAGES]), self._expected_prompt([*WARM_UP_MESSAGES])
            )
        self.generate(name, list(WARM_UP_MESSAGES), WARM_UP_OPTIONS)

    def generate(self, name: str | None, messages: list[ChatMessage], options: GenerateOptions) -> Generated:
        """Answer with the adapter `name` (None: the plain base); surrounding white space is removed.

        Raises ServingError for a missing system message, an unknown name, and a prompt or an answer that
        the context cannot hold; ServingUnavailable when the engine does not start or does not answer.
        """
        check_messages(messages)

        def complete(process: LlamaProcess) -> Generated:
            prompt = self._rendered(process, messages)
            body = self._request(name, prompt)
            body |= {
                "n_predict": options.max_tokens,
                "temperature": options.temperature,
                "top_p": options.top_p,
                "top_k": options.top_k,
                # The engines' own defaults differ (llama.cpp min_p 0.05, Ollama repeat_penalty 1.1): switch
                # them off, so that an adapter is judged and served with the same sampling everywhere.
                "min_p": 0.0,
                "repeat_penalty": 1.0,
            }
            if options.seed is not None:
                body["seed"] = options.seed
            answer = process.post("/completion", body, timeout_s=self._timeout_s)
            predicted = int(answer.get("tokens_predicted", 0))
            why = answer.get("stop_type")
            if why == "limit" and predicted < options.max_tokens:
                raise answer_cut(answer.get("tokens_evaluated"), predicted, self._context_tokens)
            return Generated(text=str(answer["content"]).strip(), stopped=why in ("eos", "word"))

        return self._ask(name, complete)

    def render(self, messages: list[ChatMessage]) -> str:
        """Return the prompt text that the base's own chat template makes of `messages`."""
        check_messages(messages)
        return self._ask(None, lambda process: self._rendered(process, messages))

    def remove(self, name: str) -> bool:
        """Delete `name` from the folder and from this object's engine; True when it was there."""
        check_name(name)
        with self._lock:
            there = self._folder.remove(name)
            if any(adapter.name == name for adapter in self._loaded):
                self._stop()  # the weights leave the memory now, not at some later restart
        return there

    def list(self) -> list[ServedModel]:
        """Return the base (digest None) and every published adapter."""
        adapters = [ServedModel(name=found.name, digest=found.digest) for found in self._folder.all()]
        return [ServedModel(name=self._base_gguf.name), *adapters]

    def close(self) -> None:
        """Stop the engine, also under another thread's request; the next request would start it again."""
        self._closing = True
        if (process := self._process) is not None:
            process.stop()
        with self._lock:
            self._stop()
            self._closing = False

    # ---- measuring: the export test compares these with PEFT's -----------------------------------------

    def tokenize(self, text: str) -> Sequence[int]:
        """Return the token ids that the engine feeds for `text` as a prompt (special tokens are parsed)."""
        body = {"content": text, "add_special": True, "parse_special": True}
        answer = self._ask(None, lambda process: process.post("/tokenize", body, timeout_s=self._timeout_s))
        return [int(token) for token in answer["tokens"]]

    def next_token_logprobs(self, name: str | None, prompt_text: str, n: int) -> dict[int, float]:
        """Return the `n` likeliest next tokens and their natural log-probabilities, before any sampling."""

        def complete(process: LlamaProcess) -> dict[int, float]:
            body = self._request(name, prompt_text) | {"n_predict": 1, "n_probs": n, "temperature": 0.0}
            answer = process.post("/completion", body, timeout_s=self._timeout_s)
            return _first_logprobs(answer)

        return self._ask(name, complete)

    # ---- the process -------------------------------------------------------------------------------

    def _ask(self, name: str | None, ask: Callable[[LlamaProcess], _T]) -> _T:
        """Run `ask` on a process that holds `name`; when the process has died, once more on a new one."""
        if name is not None:
            check_name(name)
        with self._lock:
            for last_try in (False, True):
                process = self._holding(name)
                try:
                    return ask(process)
                except RequestRefused as exc:
                    raise self._refusal(exc) from exc
                except httpx.TimeoutException as exc:
                    self._stop()  # it may still be computing: the next request gets a free engine
                    raise ServingUnavailable(
                        f"llama.cpp gave no answer within {self._timeout_s:g} s. Try again with fewer tokens."
                    ) from exc
                except httpx.TransportError as exc:
                    self._stop()
                    if self._closing:
                        raise self._closed() from exc
                    logger.warning("llama.cpp (pid %d) went away during a request", process.pid)
                    if last_try:
                        raise ServingUnavailable(
                            f"llama.cpp died twice during one request. Its last words are in {self._log}."
                        ) from exc
        raise AssertionError("unreachable: the loop returns or raises")

    def _holding(self, name: str | None) -> LlamaProcess:
        """Return a living process that holds `name` and nothing that was removed or changed since."""
        wanted = None if name is None else self._published(name)
        current = [adapter for adapter in self._loaded if self._is_current(adapter)]
        if name is not None:
            self._recent = [used for used in self._recent if used != name] + [name]
        unchanged = current == self._loaded and (wanted is None or wanted in current)
        if self._process is not None and self._process.alive and unchanged:
            return self._process
        if wanted is not None:
            self._check_intact(wanted)
        others = [adapter for adapter in current if adapter != wanted and self._is_intact(adapter)]
        others.sort(key=lambda adapter: self._recent.index(adapter.name))
        room = self._max_loaded - (wanted is not None)
        kept = others[len(others) - room :] if len(others) > room else others
        return self._start([*kept, *([wanted] if wanted else [])], wanted)

    def _start(self, adapters: Sequence[PublishedAdapter], wanted: PublishedAdapter | None) -> LlamaProcess:
        self._stop()
        if self._closing:
            raise self._closed()
        try:
            self._process = self._launch([self._folder.file(adapter.name) for adapter in adapters], self._log)
        except LoadFailed as exc:
            if len(adapters) > (wanted is not None):
                # One file must not take everyone down: serve the one that was asked for.
                logger.warning("llama.cpp did not start with %d adapters; trying with fewer", len(adapters))
                return self._start([wanted] if wanted else [], wanted)
            if wanted is not None:
                raise ServingError(
                    f"llama.cpp does not start with {wanted.name}: {_reason(self._log)}. Publish it again."
                ) from exc
            raise ServingUnavailable(
                f"llama.cpp does not start with the base {self._base_gguf.name}: {_reason(self._log)} "
                f"(exit code {exc.exit_code}). Check the file and the free memory; more is in {self._log}."
            ) from exc
        self._loaded = [*adapters]
        return self._process

    def _launch(self, adapters: Sequence[Path], log: Path) -> LlamaProcess:
        """Start a process. Raises LoadFailed, or ServingUnavailable when the files are not to blame."""
        if not self._base_gguf.is_file():
            raise self._base_missing()
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
            log.write_bytes(b"")
        try:
            return LlamaProcess(
                self._base_gguf,
                adapters,
                context_tokens=self._context_tokens,
                threads=self._threads,
                log=log,
                start_timeout_s=self._start_timeout_s,
            )
        except StartTimeout as exc:
            raise ServingUnavailable(
                f"llama.cpp did not start within {self._start_timeout_s:g} s. Free memory or processors "
                "and try again."
            ) from exc
        except LoadFailed as exc:
            if exc.exit_code == -9:  # the kernel's out-of-memory killer, or an operator
                raise ServingUnavailable(
                    "llama.cpp was killed while it loaded: most likely the memory is full. Free some and try "
                    "again."
                ) from exc
            raise
        except OSError as exc:
            raise ServingUnavailable(f"llama.cpp cannot be started: {exc.strerror}. Try again.") from exc

    def _stop(self) -> None:
        if self._process is not None:
            self._process.stop()
        self._process, self._loaded = None, []

    def _try_out(self, copy: Path, name: str) -> None:
        """Load `copy` alone and generate. Raises AdapterRefused with llama.cpp's reason."""
        with tempfile.NamedTemporaryFile(prefix=".trial-", dir=self._folder.path) as log_file:
            log = Path(log_file.name)
            try:
                process = self._launch([copy], log)
            except LoadFailed as exc:
                raise AdapterRefused(f"llama.cpp refuses the adapter for {name}: {_reason(log)}.") from exc
            try:
                body = {"prompt": self._rendered(process, WARM_UP_MESSAGES), "n_predict": 1, "n_probs": 1}
                body |= {"lora": [{"id": 0, "scale": 1.0}], "temperature": 0.0}
                logprobs = _first_logprobs(process.post("/completion", body, timeout_s=self._timeout_s))
            except RequestRefused as exc:
                raise self._refusal(exc) from exc
            except httpx.TimeoutException as exc:
                raise ServingUnavailable(
                    f"llama.cpp gave no answer with the adapter for {name} within {self._timeout_s:g} s. "
                    "Try again."
                ) from exc
            except httpx.TransportError as exc:
                raise AdapterRefused(
                    f"llama.cpp dies when it generates with the adapter for {name}."
                ) from exc
            finally:
                process.stop()
        if not logprobs or not all(math.isfinite(value) for value in logprobs.values()):
            raise AdapterRefused(
                f"The adapter for {name} makes the model's numbers overflow. Train it again with a lower "
                "learning rate."
            )

    # ---- requests ----------------------------------------------------------------------------------

    def _request(self, name: str | None, prompt: str) -> dict[str, Any]:
        """Return the part of a completion request that decides whose voice answers.

        Every loaded adapter is named with its scale: llama.cpp applies *all* of them to a request that names
        none, and answers as the plain base when it is given an id that it does not know.
        """
        scales = [
            {"id": position, "scale": 1.0 if adapter.name == name else 0.0}
            for position, adapter in enumerate(self._loaded)
        ]
        if name is not None and not any(scale["scale"] for scale in scales):
            raise ServingError(f"{name} is not loaded. Publish it again.")
        return {"prompt": prompt, "lora": scales, "cache_prompt": False}

    def _rendered(self, process: LlamaProcess, messages: Sequence[ChatMessage]) -> str:
        body = {"messages": [message.to_json_dict() for message in messages]}
        return str(process.post("/apply-template", body, timeout_s=self._timeout_s)["prompt"])

    def _refusal(self, refused: RequestRefused) -> ServingError:
        error = refused.error
        if error.get("type") == "exceed_context_size_error":
            return context_exceeded(error.get("n_prompt_tokens"), error.get("n_ctx"))
        # Only the kind: llama.cpp's message may repeat parts of the request.
        return ServingError(
            f"llama.cpp refused the request: HTTP {refused.status}, {error.get('type', 'no reason given')}."
        )

    # ---- published files ---------------------------------------------------------------------------

    @property
    def _log(self) -> Path:
        return self._folder.path / "llamacpp.log"

    def _published(self, name: str) -> PublishedAdapter:
        check_name(name)
        manifest = self._folder.read(name)
        if manifest is None:
            raise ServingError(f"{name} is not published here. Publish it, or choose another version.")
        if manifest.base_digest != self._base_digest():
            raise ServingError(
                f"{name} was published for another base model than {self._base_gguf.name}. "
                "Serve with its own base, or train it again on this one."
            )
        return manifest

    def _is_current(self, adapter: PublishedAdapter) -> bool:
        try:
            return self._folder.read(adapter.name) == adapter
        except ServingError:
            return False

    def _is_intact(self, adapter: PublishedAdapter) -> bool:
        try:
            return file_digest(self._folder.file(adapter.name)) == adapter.digest
        except OSError:
            return False

    def _check_intact(self, adapter: PublishedAdapter) -> None:
        if not self._is_intact(adapter):
            raise ServingError(
                f"The file of {adapter.name} is missing or not the one that was published "
                f"({adapter.digest}). Remove it and publish it again."
            )

    def _closed(self) -> ServingUnavailable:
        return ServingUnavailable("The engine was closed during a request.")

    def _base_missing(self) -> ServingUnavailable:
        return ServingUnavailable(
            f"The base model file {self._base_gguf} does not exist. `ownvoice doctor` says how to get it."
        )

    def _base_digest(self) -> str:
        """Return the base's digest; remembered beside the adapters by size and time of change.

        Hashing takes 0.1 s for 98 MB but 10 s and more for an 8B base, and every command would pay it.
        """
        try:
            stat = self._base_gguf.stat()
        except OSError as exc:
            raise self._base_missing() from exc
        stamp = (stat.st_size, stat.st_mtime_ns)
        if self._known_base is not None and self._known_base[0] == stamp:
            return self._known_base[1]
        note = self._folder.path / ".base-digest"
        try:
            size, changed, digest = json.loads(note.read_text("utf-8"))
        except (OSError, ValueError):
            size = changed = digest = None
        if (size, changed) != stamp or not isinstance(digest, str):
            digest = file_digest(self._base_gguf)
            with self._folder.locked():
                write_atomically(note, json.dumps([*stamp, digest]))
        self._known_base = (stamp, digest)
        return digest


def usable_processors() -> int:
    """Return how many processors this process may use, at most 16."""
    if hasattr(os, "sched_getaffinity"):
        return min(16, len(os.sched_getaffinity(0)))
    return min(16, os.cpu_count() or 1)


def _first_logprobs(answer: dict[str, Any]) -> dict[int, float]:
    """Return token id → log-probability of the first generated position; NaN where JSON has null."""
    positions = answer.get("completion_probabilities") or []
    if not positions:
        return {}
    return {
        int(entry["id"]): math.nan if entry["logprob"] is None else float(entry["logprob"])
        for entry in positions[0]["top_logprobs"]
    }


def _reason(log: Path) -> str:
    """Return llama.cpp's own reason from the end of its log, without paths."""
    try:
        lines = log.read_text("utf-8", errors="replace").splitlines()[-20:]
    except OSError:
        lines = []
    found = [line for line in lines if re.search(r"\b(failed|error|mismatch)\b", line, re.IGNORECASE)]
    if not found:
        return "no reason in its log"
    # The first error is the cause, the others its consequences; drop "0.00.221.898 E function:" before it.
    return redact(re.sub(r"^[\d.]*\s*E\s+(?:\w+\s+)?\w+:\s*", "", found[0]))
