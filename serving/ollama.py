"""The production engine: one Ollama model per adapter, made from one shared base over the HTTP API.

`publish` trusts no success: Ollama creates a model from nearly any file and fails at the first chat, stacks
a second adapter on a first one without a word, and may take a file that is no adapter as a new base. It goes
version, base, file, blob, create, what was created, rendered prompt, warm-up; and deletes what fails after
create. Only GGUF adapters, only over HTTP: Ollama's import of safetensors is gone since 0.34 and
permuted the wrong matrix before. Create, copy and delete must not run side by side on one server (its
manifests are not written atomically): the Prefect limit `ollama:<host>` sees to that across processes, a lock
within this one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import ollama

from serving.adapter_file import file_digest, inspect_adapter
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
from serving.turns import Turns
from training.errors import AdapterRefused, ConfigError, OwnvoiceError, ServingError, ServingUnavailable
from training.schemas import ChatMessage, Generated, GenerateOptions, Published, ServedModel

logger = logging.getLogger(__name__)

# Since 0.30 every GGUF model runs in llama-server, which applies adapters on all architectures.
OLDEST_VERSION = (0, 30)
CONNECT_TIMEOUT_S = 5.0
BASE_USER = "(base)"

_process_lock = threading.Lock()
_turns_of: dict[tuple[str, str], Turns] = {}
_changes_of: dict[str, threading.RLock] = {}


class OllamaServing:
    """`serving.base.Serving` on an Ollama server. Safe for several threads."""

    engine = "ollama"
    at_once = 1
    """Requests that share a base take turns on the server unless its owner gave it more room."""

    def __init__(
        self,
        base_url: str,
        base_model: str,
        *,
        num_ctx: int = 2048,
        timeout_s: float = 120.0,
        architecture: str = "llama",
        template: str | None = None,
        expected_prompt: Callable[[list[ChatMessage]], str] | None = None,
        count_tokens: Callable[[str], int] | None = None,
        base_gguf: Path | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Remember the server; nothing is asked yet.

        `base_url` may end in `/api`. `base_model` is the exact Ollama name of the pristine base. `timeout_s`
        bounds one answer, with the load of the base in it, and one wait for a turn. `template` is a Go
        template that created models get instead of the base's; the plain base keeps its own.
        `expected_prompt` renders messages with the training template; publishing compares it with what the
        server renders. `count_tokens` counts that prompt's tokens, for servers that cannot render without
        generating. `base_gguf` is the base's file, which `base_ready` uploads to a server that lacks it.
        `transport` replaces the network.
        """
        self._url = _server_url(base_url)
        self._base_model = base_model
        self._num_ctx = num_ctx
        self._timeout_s = timeout_s
        self._architecture = architecture
        self._template = template
        self._expected_prompt = expected_prompt
        self._count_tokens = count_tokens
        self._base_gguf = base_gguf
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        # Proxy settings of the environment are not for a server on this machine.
        on_this_machine = urlsplit(self._url).hostname in ("127.0.0.1", "localhost", "::1")
        network = {"timeout": timeout, "trust_env": not on_this_machine, "transport": transport}
        self._http = httpx.Client(base_url=self._url, **network)  # type: ignore[arg-type]
        # Its own default is to wait for ever.
        self._client = ollama.Client(host=self._url, **network)
        with _process_lock:
            self._turns = _turns_of.setdefault((self._url, _full_name(base_model)), Turns())
            self._changes = _changes_of.setdefault(self._url, threading.RLock())

    # ---- the seam ----------------------------------------------------------------------------------

    def base_ready(self) -> None:
        """Check version and base model; a missing base is uploaded when its file is at hand, never pulled.

        Raises ServingUnavailable when nobody answers, ServingError for an old server, a base that is not
        there, is not a GGUF of the expected architecture, or already carries an adapter.
        """
        if self._base_gguf is not None:
            with self._changes:
                if self._show(self._base_model) is None:
                    self._create_base(self._base_gguf)
        self._pristine_base()

    def base_digest(self) -> str:
        """Return the digests of the base's blobs on the server. Raises what `base_ready` raises."""
        return " ".join(self._pristine_base())

    def publish(self, adapter: Path, name: str) -> Published:
        """Create the model `name` from base and adapter, and prove it; leave nothing behind on failure.

        Publishing the same bytes under the same name again is fine. Raises AdapterRefused when the file is no
        adapter for this base, does not load, or the name already means another adapter.
        """
        check_name(name)
        base_blob = self._pristine_base()
        facts = inspect_adapter(adapter, architecture=self._architecture)
        published = Published(name=name, digest=facts.digest, engine=self.engine)
        with self._changes:
            present = self._show(name)
            if present is not None:
                if _layers(present)["ADAPTER"] != [facts.digest]:
                    raise AdapterRefused(
                        f"{name} already exists on the Ollama server with another adapter. A name is never "
                        "re-pointed: publish under the next version."
                    )
                self._prove(name, facts.digest, base_blob)
                return published
            self._upload(adapter, facts.digest)
            try:
                self._create(name, facts.digest)
                self._prove(name, facts.digest, base_blob)
            except BaseException:  # a cancelled run, too, leaves nothing behind
                self._delete_quietly(name)
                raise
        return published

    def verify(self, name: str, digest: str) -> None:
        """Prove that `name` is the base plus exactly the adapter `digest`, with our prompt, and generates.

        Raises ServingError when it is not there or differs, AdapterRefused when it does not load.
        """
        check_name(name)
        self._prove(name, digest, self._pristine_base())

    def generate(self, name: str | None, messages: list[ChatMessage], options: GenerateOptions) -> Generated:
        """Answer with the model `name` (None: the plain base); surrounding white space is removed.

        Waits for the user's turn first. Raises ServingError for a missing system message, a name that is not
        there, and a prompt or an answer that the context cannot hold; ServingUnavailable when the server does
        not answer, is busy, or the turn does not come.
        """
        check_messages(messages)
        if name is not None:
            check_name(name)
        answer = self._chat(name or self._base_model, messages, options)
        text = str(answer["message"]["content"]).strip()
        return Generated(text=text, stopped=answer.get("done_reason") == "stop")

    def render(self, messages: list[ChatMessage]) -> str:
        """Return the prompt text that the server makes of `messages` for the base."""
        check_messages(messages)
        rendered = self._rendered(self._base_model, messages)
        if rendered is None:
            raise ServingError(
                "This Ollama version cannot show a rendered prompt. Update Ollama, or compare token counts."
            )
        return rendered

    def remove(self, name: str) -> bool:
        """Delete the model `name`, unloading it first; True when it was there."""
        check_name(name)
        with self._changes, self._errors(f"delete {name}"):
            self._unload(name)
            try:
                self._client.delete(name)
            except ollama.ResponseError as exc:
                if exc.status_code == 404:
                    return False
                raise
        return True

    def list(self) -> list[ServedModel]:
        """Return the base (digest None) and the models made from it, each with its adapter's digest."""
        with self._errors("list the models"):
            models = self._client.list().models
        base = _full_name(self._base_model)
        served = []
        for model in models:
            name = model.model or ""
            if _full_name(name) == base:
                served.append(ServedModel(name=name))
            elif model.details and _full_name(model.details.parent_model or "") == base:
                shown = self._show(name)
                if shown is not None:  # None: deleted meanwhile
                    digests = _layers(shown)["ADAPTER"]
                    served.append(ServedModel(name=name, digest=digests[0] if len(digests) == 1 else None))
        return served

    def close(self) -> None:
        """Close the connections; the server keeps running."""
        self._http.close()
        self._client.close()  # type: ignore[no-untyped-call]

    # ---- erasing (serving/erasure.py) ----------------------------------------------------------------

    def names(self) -> Sequence[str]:
        """Return the names of all models on the server, whatever base they stand on."""
        with self._errors("list the models"):
            return [model.model or "" for model in self._client.list().models]

    def adapters_of(self, name: str) -> Sequence[str]:
        """Return the digests of the adapters in the model `name`; none when it is not there."""
        shown = self._show(name)
        return () if shown is None else [digest for digest in _layers(shown)["ADAPTER"] if digest]

    def holds_blob(self, digest: str) -> bool:
        """Tell whether the server still has the uploaded file with this digest."""
        doing = "look for an adapter file"
        with self._errors(doing):
            status = self._http.head(f"/api/blobs/{digest}").status_code
        if status not in (200, 404):
            raise self._refused(status, "", doing)
        return status == 200

    def drop_blob(self, digest: str, scratch: str) -> None:
        """Delete an uploaded adapter that no model refers to, through a model `scratch` made for that.

        Ollama deletes a file with the last model that uses it, and offers no other way; what was uploaded
        and never became a model would stay until a restart an hour later. Errors as for `publish`.
        """
        check_name(scratch)
        with self._changes:
            self._create(scratch, digest)
        self.remove(scratch)

    # ---- the steps of publishing -------------------------------------------------------------------

    def _pristine_base(self) -> Sequence[str]:
        """Return the digests of the base's model blobs, after all that can be checked without an adapter."""
        version = str(self._json("GET", "/api/version", "read the version").get("version", ""))
        found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        # A server built from source says 0.0.0: it is judged by what it does.
        if (0, 0) < found < OLDEST_VERSION:
            raise ServingError(
                f"Ollama {version} is too old: adapters need {'.'.join(map(str, OLDEST_VERSION))} or newer. "
                "Update Ollama."
            )
        shown = self._show(self._base_model)
        if shown is None:
            # Creating from an absent base would make the server pull it: gigabytes, and the name goes out.
            raise ServingError(
                f"The base model {self._base_model} is not on the Ollama server. "
                f"Run `ollama pull {self._base_model}` there, or set OWNVOICE_OLLAMA_BASE to its name."
            )
        kind = (shown.details.format if shown.details else None) or "unknown"
        architecture = str((shown.modelinfo or {}).get("general.architecture", "unknown"))
        if kind != "gguf":
            # On other formats Ollama accepts an adapter and ignores it.
            raise ServingError(
                f"The base model {self._base_model} has the format {kind!r}; adapters work on 'gguf' only. "
                "Choose a GGUF model."
            )
        if architecture != self._architecture:
            raise ServingError(
                f"The base model {self._base_model} has the architecture {architecture!r}; adapters are "
                f"trained for {self._architecture!r}. Correct the base model's Ollama name."
            )
        layers = _layers(shown)
        if layers["ADAPTER"]:
            # A second adapter would be stacked on the first, and both applied.
            raise ServingError(
                f"The base model {self._base_model} already carries an adapter. Name the pristine base."
            )
        return layers["FROM"]

    def _upload(self, adapter: Path, digest: str) -> None:
        """Bring the file to the server unless it is there. Asking first spares a body that nobody reads."""
        with self._errors("look for the adapter"):
            present = self._http.head(f"/api/blobs/{digest}")
        if present.status_code == 200:
            return
        if present.status_code != 404:
            raise self._refused(present.status_code, "", "look for the adapter")
        with self._errors("upload the adapter"):
            uploaded = self._client.create_blob(adapter)
        if uploaded != digest:
            raise ServingError(f"{adapter.name} changed while it was uploaded. Publish it again.")

    def _create_base(self, gguf: Path) -> None:
        """Make the base model from our own file: adapters then serve on the weights they were trained on."""
        digest = file_digest(gguf)
        self._upload(gguf, digest)
        logger.info("creating the base model %s on the Ollama server", self._base_model)
        body = {"model": self._base_model, "files": {gguf.name: digest}, "stream": False}
        self._post_create(body, f"create {self._base_model}")

    def _create(self, name: str, digest: str) -> None:
        """Make the model `name` from the base and the uploaded adapter."""
        body = {
            "model": name,
            "from": self._base_model,
            # The key's ending tells Ollama the format.
            "adapters": {"adapter.gguf": digest},
            # In the model, not in requests: a request with another num_ctx reloads the base, and Ollama's
            # OpenAI route carries none. Ollama's own default depends on the machine's memory.
            "parameters": {"num_ctx": self._num_ctx},
            "stream": False,
        }
        if self._template is not None:
            body["template"] = self._template
        self._post_create(body, f"create {name}")

    def _post_create(self, body: dict[str, Any], doing: str) -> None:
        """Ask for a model and read the answer to its end."""
        with self._errors(doing):
            response = self._http.post("/api/create", json=body)
        last = ""
        # One object, or (a server or proxy that streams anyway) one a line: an error may come as a line
        # under HTTP 200, and "success" more than once. Only the end counts.
        for line in response.text.splitlines():
            try:
                said = json.loads(line) if line.strip() else {}
            except ValueError as exc:
                if response.is_success:
                    raise self._not_ollama(doing) from exc
                said = {}
            if isinstance(said, dict) and said.get("error"):
                text = str(said["error"])
                raise _create_refused(text) or self._refused(response.status_code, text, doing)
            last = str(said.get("status", last)) if isinstance(said, dict) else last
        if not response.is_success:
            raise self._refused(response.status_code, response.text, doing)
        if last != "success":
            raise ServingUnavailable(f"Ollama ended the request to {doing} without success. Try again.")

    def _prove(self, name: str, digest: str, base_blobs: Sequence[str]) -> None:
        """Check what `name` is made of, how it renders, and that it loads and generates."""
        shown = self._show(name)
        if shown is None:
            raise ServingError(f"{name} is not on the Ollama server. Publish it.")
        layers = _layers(shown)
        if layers["ADAPTER"] != [digest]:
            raise ServingError(
                f"{name} on the Ollama server has {len(layers['ADAPTER'])} adapter(s), not exactly one "
                f"with {digest}. Remove it and publish it again."
            )
        if layers["FROM"] != base_blobs:
            raise ServingError(
                f"{name} on the Ollama server stands on another base than {self._base_model} does now. "
                "Remove it and publish it again."
            )
        num_ctx = re.findall(r"^num_ctx\s+(\d+)\s*$", shown.parameters or "", re.MULTILINE)
        if num_ctx != [str(self._num_ctx)]:
            raise ServingError(
                f"{name} on the Ollama server has num_ctx {', '.join(num_ctx) or 'unset'}; it must be "
                f"{self._num_ctx}, as every model on this base. Publish the next version."
            )
        try:
            rendered_tokens = self._check_prompt(name)
            answer = self._chat(name, WARM_UP_MESSAGES, WARM_UP_OPTIONS)
        except _DoesNotLoad as exc:
            raise self._blame(name) from exc
        evaluated = answer.get("prompt_eval_count")
        if rendered_tokens is not None and evaluated != rendered_tokens:
            raise ServingError(
                f"{name} sees a test prompt of {evaluated} tokens where training saw {rendered_tokens}: the "
                "server's chat template is not the training one. Set the base's Ollama template."
            )

    def _check_prompt(self, name: str) -> int | None:
        """Compare the server's rendering with the training template's.

        Returns None when they are equal; where the server cannot show its rendering, the number of tokens
        that the warm-up's prompt must have. (Ollama matches a template of its own to the model's; equal looks
        do not prove equal prompts.)
        """
        if self._expected_prompt is None:
            logger.warning("no expected prompt given: the chat template of %s is not checked", name)
            return None
        expected = self._expected_prompt([*WARM_UP_MESSAGES])
        rendered = self._rendered(name, WARM_UP_MESSAGES)
        if rendered is None:
            if self._count_tokens is None:
                raise ServingError(
                    "This Ollama version cannot show a rendered prompt, and no token counter was given to "
                    "compare with: the chat template is not proven. Update Ollama."
                )
            return self._count_tokens(expected)
        check_same_prompt(name, rendered, expected)
        return None

    def _blame(self, name: str) -> OwnvoiceError:
        """Return the error for a model that does not load: the adapter's fault only if the base does load."""
        try:
            self._chat(self._base_model, WARM_UP_MESSAGES, WARM_UP_OPTIONS)
        except _DoesNotLoad as exc:
            return ServingUnavailable(
                f"Not even the base model {self._base_model} loads on the Ollama server ({exc.reason}). "
                "See the server's log."
            )
        return AdapterRefused(
            f"Ollama cannot load {name}, though its base loads: the adapter does not fit the base "
            "(architecture, shapes or rank). Export it again, or train on this base."
        )

    def _delete_quietly(self, name: str) -> None:
        """Delete what was created and not proven; a failure here must not hide the reason."""
        try:
            self._client.delete(name)
        except ollama.ResponseError as exc:
            if exc.status_code != 404:
                logger.warning("%s could not be deleted: HTTP %d", name, exc.status_code)
        except (ConnectionError, httpx.HTTPError) as exc:
            logger.warning("%s could not be deleted: %s", name, type(exc).__name__)

    def _unload(self, name: str) -> None:
        """Take `name` out of the server's memory: deleting a loaded model does not."""
        if any(running.model == name for running in self._client.ps().models):
            with contextlib.suppress(ollama.ResponseError):  # the deletion is what counts
                self._client.generate(model=name, keep_alive=0)

    # ---- requests ----------------------------------------------------------------------------------

    def _chat(self, model: str, messages: Sequence[ChatMessage], options: GenerateOptions) -> dict[str, Any]:
        """Wait for the user's turn and return the server's answer object."""
        settings: dict[str, Any] = {
            "temperature": options.temperature,
            "top_p": options.top_p,
            "top_k": options.top_k,
            "num_predict": options.max_tokens,
            # The engines' own defaults differ (min_p is 0.05 in llama.cpp, 0 here): spelled out, so that an
            # adapter is judged and served with the same sampling everywhere.
            "min_p": 0.0,
            "repeat_penalty": 1.0,
        }
        if options.seed is not None:
            settings["seed"] = options.seed
        user = model.partition(":")[0] if model != self._base_model else BASE_USER
        with self._turns.turn(user, self._timeout_s):
            answer = self._post_chat(model, messages, settings)
        message = answer.get("message")
        if not answer.get("done") or not isinstance(message, dict) or "content" not in message:
            raise self._not_ollama(f"answer with {model}")
        written = int(answer.get("eval_count", 0))
        if answer.get("done_reason") == "length" and written < options.max_tokens:
            raise answer_cut(answer.get("prompt_eval_count"), written, self._num_ctx)
        return answer

    def _rendered(self, model: str, messages: Sequence[ChatMessage]) -> str | None:
        """Return the prompt as the server renders it, None when this version generates instead."""
        with self._turns.turn(BASE_USER, self._timeout_s):
            answer = self._post_chat(model, messages, {"num_predict": 1}, _debug_render_only=True)
        shown = answer.get("_debug_info")
        text = shown.get("rendered_template") if isinstance(shown, dict) else None
        return text if isinstance(text, str) else None

    def _post_chat(
        self, model: str, messages: Sequence[ChatMessage], settings: dict[str, Any], **extra: bool
    ) -> dict[str, Any]:
        if model == self._base_model:
            # The base has no num_ctx of its own; another one than the adapters' would reload it.
            settings = {**settings, "num_ctx": self._num_ctx}
        body = {
            "model": model,
            "messages": [message.to_json_dict() for message in messages],
            "stream": False,
            # Without it Ollama cuts a long prompt and answers, HTTP 200, from what is left.
            "truncate": False,
            "options": settings,
            **extra,
        }
        return self._json("POST", "/api/chat", f"answer with {model}", body)

    def _json(self, method: str, path: str, doing: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        with self._errors(doing):
            response = self._http.request(method, path, json=body)
        try:
            answer = response.json()
        except ValueError as exc:
            if response.is_success:
                raise self._not_ollama(doing) from exc
            answer = None
        error = answer.get("error") if isinstance(answer, dict) else None
        if response.is_error or error:
            raise self._refused(response.status_code, str(error or ""), doing)
        if not isinstance(answer, dict):
            raise self._not_ollama(doing)
        return answer

    def _show(self, name: str) -> ollama.ShowResponse | None:
        with self._errors(f"look at {name}"):
            try:
                return self._client.show(name)
            except ollama.ResponseError as exc:
                if exc.status_code == 404:
                    return None
                raise

    # ---- errors ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Turn what httpx and the ollama client raise into ours."""
        try:
            yield
        except ollama.ResponseError as exc:
            raise self._refused(exc.status_code, exc.error, doing) from exc
        except (ConnectionError, httpx.ConnectError, httpx.ConnectTimeout) as exc:
            raise ServingUnavailable(
                f"No Ollama server answers at {self.place}. Start it (`ollama serve`), or correct "
                "OLLAMA_BASE_URL."
            ) from exc
        except httpx.TimeoutException as exc:
            raise ServingUnavailable(
                f"Ollama at {self.place} did not {doing} within {self._timeout_s:g} s. Try again."
            ) from exc
        except httpx.HTTPError as exc:
            raise ServingUnavailable(
                f"Ollama at {self.place} broke the connection when asked to {doing}. Try again."
            ) from exc
        except ValueError as exc:  # the client could not read the answer
            raise self._not_ollama(doing) from exc

    def _refused(self, status: int, text: str, doing: str) -> OwnvoiceError:
        """Return the error for an HTTP error answer; the texts are those of recorded servers."""
        inner = _nested_error(text)
        if inner.get("type") == "exceed_context_size_error":
            return context_exceeded(inner.get("n_prompt_tokens"), inner.get("n_ctx"))
        lower = text.lower()
        if "process has terminated" in lower:
            if "signal: killed" in lower:
                return ServingUnavailable(
                    "Ollama's engine was killed while loading: most likely the memory is full. Free some "
                    "and try again."
                )
            return _DoesNotLoad(f"Ollama could not {doing}", redact(text))
        busy = (
            "server busy",
            "maximum pending requests",
            "resource limitations",
            "out of memory",
            "timed out",
        )
        if status in (408, 429, 502, 503, 504) or any(sign in lower for sign in busy):
            return ServingUnavailable(
                f"Ollama at {self.place} could not {doing}: it is busy (HTTP {status}). Try again."
            )
        if status == 404 and "not found" in lower:
            return ServingError(
                f"Ollama could not {doing}: it has no such model. Publish it, or choose another version."
            )
        if status in (401, 403):
            return ServingError(
                f"Ollama at {self.place} refuses to {doing} (HTTP {status}). Check its address and access."
            )
        if doing.startswith("answer"):
            # An error of the generating engine may quote the prompt or the answer: those are mail.
            return ServingError(f"Ollama could not {doing} (HTTP {status}). The server's log says why.")
        return ServingError(f"Ollama could not {doing} (HTTP {status}): {redact(text) or 'no reason given'}.")

    def _not_ollama(self, doing: str) -> ServingError:
        return ServingError(
            f"What answers at {self.place} when asked to {doing} does not answer like Ollama. "
            "Correct OLLAMA_BASE_URL."
        )

    @property
    def place(self) -> str:
        """Host and port; never the user name or password of the URL."""
        parts = urlsplit(self._url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


class _DoesNotLoad(ServingError):
    """The engine process ended while it loaded a model."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(f"{message}: the model does not load ({reason}). Verify it, or publish it again.")
        self.reason = reason


def _server_url(base_url: str) -> str:
    """Return scheme, host and port; accepts a missing scheme and a trailing `/api`. Raises ConfigError."""
    url = base_url.strip()
    if "://" not in url:
        url = f"http://{url}"
    url = url.rstrip("/").removesuffix("/api").rstrip("/")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError("OLLAMA_BASE_URL is not an address like http://127.0.0.1:11434. Correct it.")
    return url


def _full_name(name: str) -> str:
    """Return the name as Ollama lists it: with a tag, and folded for its case-blind comparison."""
    lower = name.lower()
    return lower if ":" in lower.rpartition("/")[2] or not lower else f"{lower}:latest"


def _layers(shown: ollama.ShowResponse) -> dict[str, list[str]]:
    """Return the digests of the FROM and ADAPTER lines at the head of the Modelfile.

    Only the head: a license or a template further down is free text. A line without a digest counts as "".
    """
    layers: dict[str, list[str]] = {"FROM": [], "ADAPTER": []}
    for line in (shown.modelfile or "").splitlines():
        word, _, rest = line.partition(" ")
        if word in layers:
            found = re.search(r"sha256-([0-9a-f]{64})\W*$", rest)
            layers[word].append(f"sha256:{found[1]}" if found else "")
        elif line.strip() and not line.startswith("#"):
            break
    return layers


def _nested_error(text: str) -> dict[str, Any]:
    """Return llama-server's error object when Ollama passes it on as JSON inside its own error text."""
    try:
        error = json.loads(text)
        error = error.get("error", error)
    except (ValueError, AttributeError):
        return {}
    return error if isinstance(error, dict) else {}


_FILE_SIGNS = (
    "gguf",
    "exceeds file size",
    "failed to read",
    "unexpected eof",
    "unknown type",
    "only one adapter",
    "unsupported architecture",
    "do not support adapters",
)


def _create_refused(text: str) -> OwnvoiceError | None:
    """Return the error for a create that failed for a reason of its own, None for the common ones."""
    lower = text.lower()
    if "no such file" in lower:
        # The server prunes blobs that no model uses, at start and when the last user of one is deleted.
        return ServingUnavailable(
            "The uploaded adapter was gone from the server at create. Publish it again."
        )
    if "pull model manifest" in lower:
        return ServingError(
            "The base model disappeared from the Ollama server at create. Run `ollama pull` for it there."
        )
    if any(sign in lower for sign in _FILE_SIGNS):
        return AdapterRefused(f"Ollama refuses the adapter file: {redact(text)}. Export the adapter again.")
    return None
