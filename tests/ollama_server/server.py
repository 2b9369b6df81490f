"""The HTTP face of the tests' Ollama: routes, codes, content types, streams, faults and the request log."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import random
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple, Self

from tests.ollama_server import create
from tests.ollama_server.create import CreateError, NotCoveredByDouble, create_model, pull_error
from tests.ollama_server.generation import (
    CHAT_FIELDS,
    GENERATE_FIELDS,
    BadOption,
    GenerationError,
    chat,
    from_openai,
    generate,
    to_openai,
    to_openai_chunks,
)
from tests.ollama_server.go_json import BadJson, decode, encode, timestamp
from tests.ollama_server.go_template import NotCovered
from tests.ollama_server.model_store import InvalidDigest, ModelStore, StoredModel, UnknownModel
from tests.ollama_server.names import ModelName, parse_name, split_source
from tests.ollama_server.scheduler import Gone, RunnerFailed, RunnerRefused, Scheduler

GO_BUFFER_BYTES = 2048
"""net/http sends a longer answer in chunks, a shorter one with Content-Length."""
GO_DRAIN_BYTES = 256 << 10
"""net/http reads at most this much of a body that the handler ignored; beyond it, it closes."""
GO_CLOSE_DELAY_S = 0.5
"""rstAvoidanceDelay of net/http: the answer may still be read before the connection is reset."""
RUNNER_COMPUTE_BYTES = 14_810_374
"""/api/ps.size of the real server (135M base, 1k context) less the model's file and its KV cache."""

JSON = "application/json; charset=utf-8"
JSON_STREAM = "application/x-ndjson"


class Request(NamedTuple):
    """One request as the client sent it; `json` is None for a body that is no JSON object."""

    method: str
    path: str
    json: dict[str, Any] | None


class Fault(NamedTuple):
    status: int | str
    hang_s: float


class OllamaServer:
    """A server that keeps the rules of a recorded Ollama and generates with llama.cpp.

    Use as a context manager or with `start()` and `stop()`. `version` picks the rules: anything from 0.34 on
    (or the recorded change, `0.33.0-pr14969`) behaves as the recordings of the newer server.
    """

    def __init__(
        self, models_dir: Path, version: str = "0.33.0-rc2", *, port: int = 0, runner_threads: int = 1
    ) -> None:
        self.version = version
        self.newer = "pr14969" in version or tuple(map(int, re.findall(r"\d+", version)[:2])) >= (0, 34)
        self.store = ModelStore(models_dir)
        self.scheduler = Scheduler(runner_threads)
        self.requests: list[Request] = []
        self.stopping = threading.Event()
        self._faults: list[tuple[str, Fault]] = []
        self._lock = threading.Lock()
        self._port = port
        self._http: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> Self:
        """Listen on loopback; port 0 takes a free one and keeps it over stop and start."""
        self.store.prune_orphans()
        self.stopping.clear()
        handler = type("BoundHandler", (_Handler,), {"ollama": self})
        self._http = _Server(("127.0.0.1", self._port), handler)
        self._port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the server and every runner process; the models folder stays."""
        self.stopping.set()
        if self._http is not None and self._thread is not None:
            self._http.shutdown()
            self._http.server_close()
            self._thread.join()
            self._http = None
        self.scheduler.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def preload_base(self, name: str, gguf_path: Path) -> str:
        """Make `gguf_path` the model `name` without copying it, and return its digest.

        Stands for a pulled base: FROM is the file's own digest. (A base *created from a file* gets another
        digest on 0.33.)
        """
        digest = _digest_of(gguf_path, gguf_path.stat().st_mtime_ns)
        create.preload(self.store, parse_name(name), gguf_path.resolve(), digest)
        return digest

    def fail_next(self, path: str, times: int = 1, status: int | str = 500, *, hang_s: float = 600.0) -> None:
        """Spoil the next `times` requests whose path starts with `path`.

        `status`: a number (answered with `{"error": …}`), `"close"` (no answer at all), `"hang"` (no answer
        for `hang_s` seconds) or `"cut"` (the real answer, cut off after its first half or first line).
        """
        with self._lock:
            self._faults += [(path, Fault(status, hang_s))] * times

    def take_fault(self, path: str) -> Fault | None:
        with self._lock:
            for index, (prefix, fault) in enumerate(self._faults):
                if path.startswith(prefix):
                    del self._faults[index]
                    return fault
        return None

    def loaded(self) -> list[dict[str, Any]]:
        """The entries of /api/ps."""
        entries = []
        for runner in list(self.scheduler.loaded.values()):
            model = runner.model
            details = {**model.details, "parent_model": ""}
            entries.append(
                {
                    "name": model.name.short,
                    "model": model.name.short,
                    # The adapter is not counted, as on the real server.
                    "size": model.model_path.stat().st_size + _cache_bytes(model, runner.num_ctx),
                    "digest": model.manifest.digest,
                    "details": details,
                    "expires_at": timestamp(int(min(runner.expires_at, 2**33) * 1e9)),
                    "size_vram": 0,
                    "context_length": runner.num_ctx,
                }
            )
        return sorted(entries, key=lambda entry: str(entry["expires_at"]), reverse=True)


def _cache_bytes(model: StoredModel, num_ctx: int) -> int:
    """KV cache in F16 (2 bytes, keys and values) plus compute buffers."""
    header = model.header
    kv = {key.removeprefix(f"{header.architecture}."): value for key, value in header.kv.items()}
    head_bytes = 2 * 2 * kv["embedding_length"] // kv["attention.head_count"]
    per_token = kv["block_count"] * kv.get("attention.head_count_kv", kv["attention.head_count"]) * head_bytes
    return int(per_token * num_ctx) + RUNNER_COMPUTE_BYTES


@lru_cache(maxsize=8)
def _digest_of(path: Path, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A hanging handler must not keep server_close() waiting.
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that went away."""


class _Refused(Exception):
    """Ends a request before its stream; answered as JSON."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _CutOff(Exception):
    """An injected fault ends the connection here."""


class _Handler(BaseHTTPRequestHandler):
    """Routes one connection. The order of checks is that of the Go handlers."""

    protocol_version = "HTTP/1.1"
    ollama: OllamaServer
    _fault: Fault | None
    _answered: bool

    def log_message(self, *_: object) -> None:
        """Stay silent; `OllamaServer.requests` is the log."""

    def version_string(self) -> str:
        return "tests-ollama"

    def do_GET(self) -> None:
        self._dispatch()

    do_HEAD = do_POST = do_DELETE = do_PUT = do_PATCH = do_OPTIONS = do_GET

    # ---- one request

    def _dispatch(self) -> None:
        self._body = _Body(self)
        self._answered = False
        path = self.path.split("?", 1)[0]
        self._fault = self.ollama.take_fault(path)
        if self._fault is not None and self._fault.status != "cut":
            self._spoil(path, self._fault)
            return
        try:
            self._route(path)
        except _CutOff:
            self.close_connection = True
        except NotCoveredByDouble as exc:
            self._error(501, f"the tests' Ollama does not cover {exc}")
        except NotCovered as exc:
            self._error(501, f"the tests' Ollama cannot render {exc}")
        except _Refused as exc:
            self._error(exc.status, str(exc))
        except (BrokenPipeError, ConnectionResetError, Gone):
            self.close_connection = True
        except Exception as exc:
            # A fault of the double must not look like a fault of the network.
            self._error(500, f"the tests' Ollama itself failed: {exc!r}")
            raise
        finally:
            self._finish_body()

    def _spoil(self, path: str, fault: Fault) -> None:
        self._read_json_for_log(path)
        if isinstance(fault.status, int):
            self._error(fault.status, "injected fault")
        else:
            if fault.status == "hang":
                self.ollama.stopping.wait(fault.hang_s)
            self.close_connection = True

    def _route(self, path: str) -> None:
        if not _host_allowed(self.headers.get("Host", "")):
            self._send(403, "", b"")
            return
        blob = re.fullmatch(r"/api/blobs/([^/]+)", path)
        methods = {"HEAD", "POST"} if blob else _ROUTES.get(path, {}).keys()
        if not methods:
            self._log(path, None)
            self._send(404, "text/plain", b"404 page not found")
        elif self.command not in methods:
            self._log(path, None)
            self._send(405, "text/plain", b"405 method not allowed")
        elif blob:
            self._log(path, None)
            (self._head_blob if self.command == "HEAD" else self._post_blob)(blob[1])
        else:
            handler = _ROUTES[path][self.command]
            if handler is None:
                self._read_json_for_log(path)
                raise NotCoveredByDouble(f"{self.command} {path}")
            self._read_json_for_log(path)
            handler(self)

    def _read_json_for_log(self, path: str) -> None:
        self._raw = self._body.read() if self.command in ("POST", "DELETE", "PUT") else b""
        try:
            value = json.loads(self._raw)
        except ValueError:
            value = None
        self._log(path, value if isinstance(value, dict) else None)

    def _log(self, path: str, value: dict[str, Any] | None) -> None:
        self.ollama.requests.append(Request(self.command, path, value))

    def _finish_body(self) -> None:
        """Do with an unread body what Go's server does: drain a short one, close over a long one."""
        with suppress(OSError, ValueError):
            if self._body.drain(GO_DRAIN_BYTES) or not self._answered:
                return
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            time.sleep(GO_CLOSE_DELAY_S)
            # Unread bytes at close make the kernel send RST, which is what breaks the client's pipe.

    # ---- answers

    def _send(self, status: int, content_type: str, body: bytes, *, length: bool = True) -> None:
        self.send_response(status)
        if content_type:
            self.send_header("Content-Type", content_type)
        chunked = len(body) > GO_BUFFER_BYTES
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif length:
            self.send_header("Content-Length", str(len(body)))
        if self._body.remaining_over(GO_DRAIN_BYTES):
            self.send_header("Connection", "close")
        self.end_headers()
        self._answered = True
        if self.command == "HEAD":
            return
        cut = self._fault is not None and self._fault.status == "cut"
        if cut:
            body = body[: len(body) // 2]
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body)
        if cut:
            raise _CutOff

    def _json(self, value: Any, status: int = 200, content_type: str = JSON) -> None:
        self._send(status, content_type, encode(value))

    def _error(self, status: int, message: str, content_type: str = JSON) -> None:
        if self._answered:
            return
        if self.path.startswith("/v1/"):
            self._send(status, content_type, _openai_error(message, status))
        else:
            self._json({"error": message}, status, content_type)

    def _stream(self, pieces: Iterator[bytes], content_type: str, error: Callable[[str, int], bytes]) -> None:
        """Send `pieces` in chunks. Until the first one, an error still has its own status code."""
        try:
            first = next(pieces, None)
        except (CreateError, GenerationError, RunnerRefused, RunnerFailed) as exc:
            status = getattr(exc, "status", 500)
            # c.Stream has flushed its headers, so even this short answer goes out in chunks.
            self._start_stream(status, "application/json")
            self._chunk(error(str(exc), status).rstrip(b"\n"))
            self._chunk(b"")
            return
        self._start_stream(200, content_type)
        try:
            if first is not None:
                self._chunk(first)
            if self._fault is not None:
                raise _CutOff
            for piece in pieces:
                self._chunk(piece)
        except (CreateError, GenerationError, RunnerRefused, RunnerFailed) as exc:
            self._chunk(error(str(exc), getattr(exc, "status", 500)))
        self._chunk(b"")

    def _start_stream(self, status: int, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._answered = True

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _decode(self, struct: str, fields: dict[str, str]) -> dict[str, Any]:
        try:
            return decode(self._raw, struct, fields)
        except BadJson as exc:
            raise _Refused(400, str(exc)) from exc

    def _is_gone(self) -> bool:
        """True when the client closed its end, so that nobody waits for the answer."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True

    # ---- general routes

    def _root(self) -> None:
        self._send(200, "text/plain; charset=utf-8", b"Ollama is running")

    def _version(self) -> None:
        self._json({"version": self.ollama.version})

    def _tags(self) -> None:
        self._json({"models": self.ollama.store.list_models()})

    def _ps(self) -> None:
        self._json({"models": self.ollama.loaded()})

    def _openai_models(self) -> None:
        data = [
            {
                "id": entry["name"],
                "object": "model",
                "created": self.ollama.store.manifest(parse_name(entry["name"])).modified_ns // 10**9,
                "owned_by": parse_name(entry["name"]).namespace,
            }
            for entry in self.ollama.store.list_models()
        ]
        self._json({"object": "list", "data": data or None}, content_type="application/json")

    # ---- blobs

    def _head_blob(self, digest: str) -> None:
        try:
            present = self.ollama.store.blob_path(digest).exists()
        except InvalidDigest as exc:
            raise _Refused(400, str(exc)) from exc
        if not present:
            raise _Refused(404, f'blob "{digest}" not found')
        self._send(200, "", b"", length=False)

    def _post_blob(self, digest: str) -> None:
        try:
            path = self.ollama.store.blob_path(digest)
        except InvalidDigest as exc:
            raise _Refused(400, str(exc)) from exc
        if path.exists():
            # The body is neither read nor compared.
            self._send(200, "", b"")
            return
        layer = self.ollama.store.add_blob(self._body)
        if layer.digest != digest:
            raise _Refused(400, f'digest mismatch, expected "{digest}", got "{layer.digest}"')
        self._send(201, "", b"")

    # ---- models

    def _create(self) -> None:
        request = self._decode("CreateRequest", create.FIELDS)
        refusal = create.refuse_early(request, newer=self.ollama.newer)
        if refusal is not None:
            raise _Refused(400, refusal)
        store = self.ollama.store
        name = store.existing(parse_name(request.get("model") or request["name"]))
        lines = create_model(store, request, name, newer=self.ollama.newer)
        self._progress(lines, stream=request.get("stream", True))

    def _pull(self) -> None:
        request = self._decode("PullRequest", {"model": "string", "name": "string", "stream": "bool"})
        name = parse_name(request.get("model") or request.get("name") or "")
        if not name.is_valid:
            raise _Refused(400, "invalid model name")

        def lines() -> Iterator[str]:
            yield "pulling manifest"
            raise CreateError(pull_error(name), 500)

        self._progress(lines(), stream=request.get("stream", True))

    def _progress(self, lines: Iterator[str], *, stream: bool) -> None:
        if stream:
            pieces = (encode({"status": line}) + b"\n" for line in lines)
            self._stream(pieces, JSON_STREAM, _native_error)
            return
        try:
            last = list(lines)[-1]
        except CreateError as exc:
            self._error(exc.status, str(exc), "application/json")
            return
        self._json({"status": last}, content_type="application/json")

    def _show(self) -> None:
        fields = {
            "model": "string",
            "name": "string",
            "system": "string",
            "verbose": "bool",
            "options": "map[string]interface {}",
        }
        request = self._decode("ShowRequest", fields)
        text = request.get("model") or request.get("name")
        if not text:
            raise _Refused(400, "model is required")
        name = self.ollama.store.existing(self._valid_name(text, "model is required"))
        try:
            answer = self.ollama.store.show(
                name,
                verbose=request.get("verbose", False),
                system=request.get("system", ""),
                options=request.get("options", {}),
            )
        except UnknownModel as exc:
            raise _Refused(404, f"model '{name.short}' not found") from exc
        self._json(answer)

    def _copy(self) -> None:
        request = self._decode("CopyRequest", {"source": "string", "destination": "string"})
        names = []
        for key in ("source", "destination"):
            text = request.get(key, "")
            name = parse_name(text)
            if not name.is_valid:
                raise _Refused(400, f'{key} "{text}" is invalid')
            names.append(self.ollama.store.existing(name))
        try:
            self.ollama.store.copy_manifest(*names)
        except UnknownModel as exc:
            raise _Refused(404, f'model "{request["source"]}" not found') from exc
        self._send(200, "", b"")

    def _delete(self) -> None:
        request = self._decode("DeleteRequest", {"model": "string", "name": "string"})
        text = request.get("model") or request.get("name") or ""
        if not text.strip():
            raise _Refused(400, "model is required")
        name = parse_name(split_source(text)[0])
        if not name.is_valid:
            raise _Refused(400, f'name "{text}" is invalid')
        try:
            self.ollama.store.delete(self.ollama.store.existing(name))
        except UnknownModel as exc:
            raise _Refused(404, f"model '{text}' not found") from exc
        self._send(200, "", b"")

    # ---- generation

    def _chat(self) -> None:
        request = self._decode("ChatRequest", CHAT_FIELDS)
        name = self._valid_name(request.get("model", ""), "model is required")
        answers = chat(self.ollama, self._stored(name, request), request, self._is_gone)
        self._answer(answers, request)

    def _generate(self) -> None:
        request = self._decode("GenerateRequest", GENERATE_FIELDS)
        missing = f"model '{request.get('model', '')}' not found"
        name = self._valid_name(request.get("model", ""), missing, missing_status=404)
        answers = generate(self.ollama, self._stored(name, request), request, self._is_gone)
        self._answer(answers, request)

    def _openai_chat(self) -> None:
        try:
            request, include_usage = from_openai(self._raw)
        except BadJson as exc:
            raise _Refused(400, str(exc)) from exc
        name = self._valid_name(request.get("model", ""), "model is required")
        answers = chat(self.ollama, self._stored(name, request), request, self._is_gone)
        identity = f"chatcmpl-{random.randrange(999)}"
        if request["stream"]:
            chunks = to_openai_chunks(identity, _refusing(answers), include_usage=include_usage)
            pieces = (b"data: " + (c if isinstance(c, bytes) else encode(c)) + b"\n\n" for c in chunks)
            self._stream(pieces, "text/event-stream", _openai_error)
            return
        self._json(to_openai(identity, self._joined(answers)), content_type="application/json")

    def _valid_name(self, text: str, missing: str, missing_status: int = 400) -> ModelName:
        if not text.strip():
            raise _Refused(missing_status, missing)
        base, source = split_source(text)
        name = parse_name(base)
        if not name.is_valid:
            raise _Refused(400, "invalid model name")
        if source == "cloud":
            raise NotCoveredByDouble("cloud models")
        return name

    def _stored(self, name: ModelName, request: dict[str, Any]) -> StoredModel:
        try:
            return self.ollama.store.load(self.ollama.store.existing(name))
        except UnknownModel as exc:
            raise _Refused(404, f"model '{request['model']}' not found") from exc

    def _answer(self, answers: Iterator[dict[str, Any]], request: dict[str, Any]) -> None:
        """Send chat or generate answers: one by one, or joined into the last one."""
        first = self._guarded(lambda: next(answers, None))
        if first is None or "_single" in first:
            # Loads, unloads and rendered prompts are plain JSON even when a stream was asked for.
            answer = {key: value for key, value in (first or {}).items() if key != "_single"}
            self._json(answer)
        elif request.get("stream", True):
            pieces = (encode(answer) + b"\n" for answer in _chained(first, _refusing(answers)))
            self._stream(pieces, JSON_STREAM, _native_error)
        else:
            self._json(self._joined(_chained(first, answers)))

    def _joined(self, answers: Iterator[dict[str, Any]]) -> dict[str, Any]:
        text, last = "", {}
        for last in self._guarded(lambda: list(answers)):
            text += last["message"]["content"] if "message" in last else last.get("response", "")
        last = {key: value for key, value in last.items() if key != "_single"}
        if "message" in last:
            return {**last, "message": {**last["message"], "content": text}}
        return {**last, "response": text}

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (GenerationError, RunnerRefused) as exc:
            raise _Refused(exc.status, str(exc)) from exc
        except (RunnerFailed, BadOption) as exc:
            raise _Refused(500, str(exc)) from exc


def _chained(first: dict[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rest


def _refusing(answers: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Turn an option of the wrong type, found before the stream, into the 500 that Ollama answers."""
    try:
        yield from answers
    except BadOption as exc:
        raise GenerationError(str(exc), 500) from exc


def _native_error(text: str, status: int) -> bytes:
    return encode({"error": text}) + b"\n"


def _openai_error(text: str, status: int) -> bytes:
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(status, "api_error")
    return encode({"error": {"message": text, "type": kind, "param": None, "code": None}}) + b"\n"


class _Body(BufferedIOBase):
    """The request's body, by length or in chunks, read only as far as somebody asks."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._file = handler.rfile
        self._chunked = handler.headers.get("Transfer-Encoding", "").lower() == "chunked"
        self._left: float = math.inf if self._chunked else int(handler.headers.get("Content-Length") or 0)
        self._chunk_left = 0

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = math.inf if size is None or size < 0 else size
        parts = []
        while wanted > 0 and self._left > 0:
            if self._chunked and not self._chunk_left:
                self._chunk_left = int(self._file.readline().split(b";")[0] or b"0", 16)
                if not self._chunk_left:
                    self._file.readline()
                    self._left = 0
                    break
            limit = min(wanted, self._chunk_left if self._chunked else self._left, 1 << 20)
            data = self._file.read(int(limit))
            if not data:
                self._left = 0
                break
            parts.append(data)
            wanted -= len(data)
            if self._chunked:
                self._chunk_left -= len(data)
                if not self._chunk_left:
                    self._file.readline()
            else:
                self._left -= len(data)
        return b"".join(parts)

    def remaining_over(self, limit: int) -> bool:
        """True when more than `limit` bytes are known to be unread."""
        return not self._chunked and self._left > limit

    def drain(self, limit: int) -> bool:
        """Read up to `limit` bytes; True when the body is then at its end."""
        if self.remaining_over(limit):
            return False
        self.read(limit)
        return self._left <= 0


def _host_allowed(host: str) -> bool:
    """Ollama on a loopback address answers only to names of this machine (and to addresses)."""
    name = host.rsplit(":", 1)[0] if re.search(r":\d+$", host) else host
    with suppress(ValueError):
        address = ipaddress.ip_address(name.strip("[]"))
        return address.is_loopback or address.is_private or address.is_unspecified
    name = name.lower()
    local = name.endswith((".localhost", ".local", ".internal"))
    return name in ("", "localhost", socket.gethostname().lower()) or local


_ROUTES: dict[str, dict[str, Callable[[_Handler], None] | None]] = {
    "/": {"GET": _Handler._root, "HEAD": _Handler._root},
    "/api/version": {"GET": _Handler._version, "HEAD": _Handler._version},
    "/api/tags": {"GET": _Handler._tags, "HEAD": _Handler._tags},
    "/api/ps": {"GET": _Handler._ps},
    "/api/show": {"POST": _Handler._show},
    "/api/create": {"POST": _Handler._create},
    "/api/pull": {"POST": _Handler._pull},
    "/api/copy": {"POST": _Handler._copy},
    "/api/delete": {"DELETE": _Handler._delete},
    "/api/chat": {"POST": _Handler._chat},
    "/api/generate": {"POST": _Handler._generate},
    "/v1/models": {"GET": _Handler._openai_models},
    "/v1/chat/completions": {"POST": _Handler._openai_chat},
    # Ollama has these too; here they answer 501.
    "/api/push": {"POST": None},
    "/api/embed": {"POST": None},
    "/api/embeddings": {"POST": None},
    "/api/status": {"GET": None},
    "/v1/completions": {"POST": None},
    "/v1/embeddings": {"POST": None},
    "/v1/responses": {"POST": None},
    "/v1/messages": {"POST": None},
}
