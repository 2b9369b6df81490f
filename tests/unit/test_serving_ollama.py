"""How the Ollama engine reads a server's answers. The server is one function; its texts were recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.ollama import OllamaServing
from tests.adapters import write_adapter
from training.errors import AdapterRefused, ConfigError, OwnvoiceError, ServingError, ServingUnavailable
from training.schemas import ChatMessage, Generated, GenerateOptions

BASE = "smollm2-base:q4"
NAME = "emailai-anna:v1"
BASE_BLOB = "941f309b54caaad6747569ba43712bcde44a2be3bae16c3282ff499c37c54af5"
PROMPT = "<|im_start|>system …"
MESSAGES = [
    ChatMessage(role="system", content="You write mail."),
    ChatMessage(role="user", content="marsupilami"),
]
SHORT = GenerateOptions(temperature=0, max_tokens=8)

Answer = Callable[[httpx.Request], httpx.Response]


def shown(adapters: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    lines = "".join(f"ADAPTER /root/.ollama/models/blobs/sha256-{digest}\n" for digest in adapters)
    return {
        "modelfile": f"# Modelfile\n\nFROM /root/.ollama/models/blobs/sha256-{BASE_BLOB}\n{lines}TEMPLATE x\n"
        "ADAPTER in a license text\n",
        "parameters": 'num_ctx                        512\nstop    "x"',
        "details": {"parent_model": BASE, "format": "gguf"},
        "model_info": {"general.architecture": "llama"},
    } | changes


class FakeOllama:
    """Answers like a healthy server; `on` replaces the answer of one path."""

    def __init__(self) -> None:
        self.on: dict[str, Answer] = {}
        self.asked: list[tuple[str, str, Any]] = []
        self.models: dict[str, dict[str, Any]] = {BASE: shown()}
        self.blobs: set[str] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        content = request.read()
        body = json.loads(content) if content.startswith(b"{") else None
        self.asked.append((request.method, path, body))
        for prefix, answer in self.on.items():
            if path.startswith(prefix):
                return answer(request)
        if path == "/api/version":
            return httpx.Response(200, json={"version": "0.33.0"})
        if path.startswith("/api/blobs/"):
            if request.method == "HEAD":
                return httpx.Response(200 if path[-64:] in self.blobs else 404)
            self.blobs.add(path[-64:])
            return httpx.Response(201)
        if path == "/api/show":
            model = self.models.get(body["model"])
            return (
                httpx.Response(200, json=model)
                if model
                else httpx.Response(404, json={"error": f"model '{body['model']}' not found"})
            )
        if path == "/api/create":
            self.models[body["model"]] = shown((body["adapters"]["adapter.gguf"][7:],))
            return httpx.Response(200, json={"status": "success"})
        if path == "/api/delete":
            there = self.models.pop(body["model"], None)
            return httpx.Response(200 if there else 404, json=None if there else {"error": "not found"})
        if path == "/api/ps":
            return httpx.Response(200, json={"models": []})
        if path == "/api/chat" and body.get("_debug_render_only"):
            return httpx.Response(200, json={"done": False, "_debug_info": {"rendered_template": PROMPT}})
        if path == "/api/chat":
            return httpx.Response(200, json=answered("Dear Anna"))
        return httpx.Response(404, text="404 page not found")


def answered(content: str, **changes: Any) -> dict[str, Any]:
    return {
        "message": {"role": "assistant", "content": content},
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 30,
        "eval_count": 4,
    } | changes


def replies(status: int, error: str) -> Answer:
    return lambda _: httpx.Response(status, json={"error": error})


def raises(error: Exception) -> Answer:
    def answer(_: httpx.Request) -> httpx.Response:
        raise error

    return answer


@pytest.fixture
def server() -> FakeOllama:
    return FakeOllama()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter.gguf", layers=1, inputs=8, outputs=6)


def engine(server: FakeOllama, **changes: Any) -> OllamaServing:
    arguments: dict[str, Any] = {"num_ctx": 512, "timeout_s": 5, "expected_prompt": lambda _: PROMPT}
    return OllamaServing(
        "http://ollama.test:11434/api", BASE, transport=httpx.MockTransport(server), **(arguments | changes)
    )


# ---- address ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["http://h:11434", "http://h:11434/", "http://h:11434/api", "h:11434/api/"])
def test_address_of_the_documents_works_with_and_without_api(server: FakeOllama, url: str) -> None:
    OllamaServing(url, BASE, transport=httpx.MockTransport(server)).base_ready()
    assert [path for _, path, _ in server.asked] == ["/api/version", "/api/show"]


@pytest.mark.parametrize("url", ["", "ftp://h", "http://", "http://h:port"])
def test_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigError, match="OLLAMA_BASE_URL"):
        OllamaServing(url, BASE)


def test_password_in_the_address_is_not_repeated(server: FakeOllama) -> None:
    server.on["/api/version"] = raises(httpx.ConnectError("refused"))
    serving = OllamaServing("http://anna:secret@h:11434", BASE, transport=httpx.MockTransport(server))
    with pytest.raises(ServingUnavailable, match="h:11434") as error:
        serving.base_ready()
    assert "secret" not in str(error.value)


# ---- the base --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        (None, f"ollama pull {BASE}"),
        (shown(details={"format": "safetensors"}), "'gguf' only"),
        (shown(model_info={"general.architecture": "qwen3"}), "'qwen3'"),
        (shown(("1" * 64,)), "already carries an adapter"),
    ],
)
def test_base_that_cannot_carry_adapters_is_refused_and_nothing_is_pulled(
    server: FakeOllama, adapter: Path, base: dict[str, Any] | None, reason: str
) -> None:
    server.models = {BASE: base} if base else {}
    with pytest.raises(ServingError, match=reason):
        engine(server).publish(adapter, NAME)
    assert {path for _, path, _ in server.asked} == {"/api/version", "/api/show"}


def test_another_base_under_the_same_name_has_another_digest(server: FakeOllama) -> None:
    before = engine(server).base_digest()
    assert engine(server).base_digest() == before
    server.on["/api/show"] = lambda _: httpx.Response(
        200, json=shown(modelfile=f"FROM /models/blobs/sha256-{'9' * 64}\n")
    )
    assert engine(server).base_digest() == f"sha256:{'9' * 64}" != before


def test_server_too_old_for_adapters_is_refused_and_a_source_build_is_not(server: FakeOllama) -> None:
    server.on["/api/version"] = lambda _: httpx.Response(200, json={"version": "0.29.4"})
    with pytest.raises(ServingError, match="is too old"):
        engine(server).base_ready()
    server.on["/api/version"] = lambda _: httpx.Response(200, json={"version": "0.0.0"})
    engine(server).base_ready()


# ---- publishing ------------------------------------------------------------------------------------


def test_publish_sends_exact_name_pristine_base_digest_and_context(server: FakeOllama, adapter: Path) -> None:
    published = engine(server).publish(adapter, NAME)
    create = next(body for _, path, body in server.asked if path == "/api/create")
    assert create == {
        "model": NAME,
        "from": BASE,
        "adapters": {"adapter.gguf": published.digest},
        "parameters": {"num_ctx": 512},
        "stream": False,
    }
    assert server.blobs == {published.digest[7:]}


def test_blob_that_is_there_is_not_sent_again(server: FakeOllama, adapter: Path) -> None:
    serving = engine(server)
    serving.publish(adapter, NAME)
    serving.publish(adapter, "emailai-anna:v2")
    assert sum(method == "POST" and "/blobs/" in path for method, path, _ in server.asked) == 1


def test_name_that_means_another_adapter_is_not_re_pointed_nor_deleted(
    server: FakeOllama, adapter: Path
) -> None:
    server.models[NAME] = before = shown(("2" * 64,))
    with pytest.raises(AdapterRefused, match="never re-pointed"):
        engine(server).publish(adapter, NAME)
    assert server.models[NAME] == before
    assert not any(path in ("/api/create", "/api/delete") for _, path, _ in server.asked)


def test_names_that_ollama_would_fold_are_refused_before_anything_is_sent(
    server: FakeOllama, adapter: Path
) -> None:
    with pytest.raises(ServingError, match="lower case"):
        engine(server).publish(adapter, "emailai-Anna:v1")
    assert server.asked == []


OURS = "the uploaded digest"


@pytest.mark.parametrize(
    ("created", "reason"),
    [
        ({"adapters": ()}, "0 adapter"),
        ({"adapters": (OURS, OURS)}, "2 adapter"),
        ({"adapters": ("3" * 64,)}, "not exactly one with"),
        ({"adapters": (OURS,), "parameters": "stop x"}, "num_ctx unset"),
        ({"adapters": (OURS,), "parameters": "num_ctx 4096"}, "num_ctx 4096"),
        ({"adapters": (OURS,), "modelfile_from": "4" * 64}, "another base"),
    ],
)
def test_created_model_that_is_not_base_plus_adapter_is_deleted(
    server: FakeOllama, adapter: Path, created: dict[str, Any], reason: str
) -> None:
    def create(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        digest = body["adapters"]["adapter.gguf"][7:]
        model = shown(tuple(digest if one == OURS else one for one in created["adapters"]))
        if "parameters" in created:
            model["parameters"] = created["parameters"]
        if "modelfile_from" in created:
            model["modelfile"] = model["modelfile"].replace(BASE_BLOB, created["modelfile_from"])
        server.models[body["model"]] = model
        return httpx.Response(200, json={"status": "success"})

    server.on["/api/create"] = create
    with pytest.raises(ServingError, match=reason):
        engine(server).publish(adapter, NAME)
    assert NAME not in server.models


CREATE_ERRORS: list[tuple[int, str, type[OwnvoiceError]]] = [
    (400, "supplied file was not in GGUF format", AdapterRefused),
    (400, "failed to read tensor name: unexpected EOF", AdapterRefused),
    (400, 'tensor "blk.9.attn_q.weight.lora_a" offset+size (9) exceeds file size (8)', AdapterRefused),
    (400, "only one adapter is currently supported", AdapterRefused),
    (400, "unknown type", AdapterRefused),
    (400, "safetensors imports do not support adapters", AdapterRefused),
    (500, "failed to validate GGUF with llama-quantize: exit status 1", AdapterRefused),
    (400, "open /root/models/blobs/sha256-22: no such file or directory", ServingUnavailable),
    (503, "server busy, please try again.  maximum pending requests exceeded", ServingUnavailable),
    (500, 'pull model manifest: Get "https://registry.ollama.ai/v2/x": no route', ServingError),
    (400, "invalid model name", ServingError),
    (500, "open /root/models/manifests/x: permission denied", ServingError),
]


@pytest.mark.parametrize("as_stream", [False, True])
@pytest.mark.parametrize(("status", "text", "kind"), CREATE_ERRORS)
def test_errors_of_create_are_told_apart_in_both_stream_forms(
    server: FakeOllama, adapter: Path, status: int, text: str, kind: type[OwnvoiceError], as_stream: bool
) -> None:
    # In a stream, an error after the first line comes under HTTP 200.
    lines = json.dumps({"status": "parsing GGUF"}) + "\n" + json.dumps({"error": text}) + "\n"
    server.on["/api/create"] = (
        (lambda _: httpx.Response(200, text=lines)) if as_stream else replies(status, text)
    )
    with pytest.raises(OwnvoiceError) as error:
        engine(server).publish(adapter, NAME)
    assert type(error.value) is kind
    assert "/root" not in str(error.value) and "registry" not in str(error.value)


def test_streamed_create_counts_by_its_end_not_by_its_first_success(
    server: FakeOllama, adapter: Path
) -> None:
    lines = [{"status": "pulling manifest"}, {"status": "success"}, {"status": "writing manifest"}]
    server.on["/api/create"] = lambda _: httpx.Response(200, text="\n".join(map(json.dumps, lines)))
    with pytest.raises(ServingUnavailable, match="without success"):
        engine(server).publish(adapter, NAME)


# ---- the prompt ------------------------------------------------------------------------------------


def test_server_that_renders_another_prompt_than_training_is_not_published_to(
    server: FakeOllama, adapter: Path
) -> None:
    with pytest.raises(ServingError, match="renders a test prompt differently"):
        engine(server, expected_prompt=lambda _: PROMPT + "\n").publish(adapter, NAME)
    assert NAME not in server.models


def test_server_that_cannot_render_is_judged_by_the_token_count(server: FakeOllama, adapter: Path) -> None:
    server.on["/api/chat"] = lambda _: httpx.Response(200, json=answered("Dear", prompt_eval_count=29))
    engine(server, count_tokens=lambda _: 29).publish(adapter, NAME)
    with pytest.raises(ServingError, match="29 tokens where training saw 40"):
        engine(server, count_tokens=lambda _: 40).publish(adapter, "emailai-anna:v2")
    with pytest.raises(ServingError, match="no token counter"):
        engine(server).publish(adapter, "emailai-anna:v3")
    assert set(server.models) == {BASE, NAME}


# ---- the warm-up -----------------------------------------------------------------------------------

DIED = "llama-server process has terminated: exit status 1"


def test_adapter_that_kills_the_engine_is_refused_and_deleted(server: FakeOllama, adapter: Path) -> None:
    def chat(request: httpx.Request) -> httpx.Response:
        fails = json.loads(request.content)["model"] == NAME
        return replies(500, DIED)(request) if fails else httpx.Response(200, json=answered("Dear"))

    server.on["/api/chat"] = chat
    with pytest.raises(AdapterRefused, match="does not fit the base"):
        engine(server).publish(adapter, NAME)
    assert NAME not in server.models


def test_engine_that_does_not_even_load_the_base_is_not_the_adapters_fault(
    server: FakeOllama, adapter: Path
) -> None:
    server.on["/api/chat"] = replies(500, DIED)
    with pytest.raises(ServingUnavailable, match="Not even the base"):
        engine(server).publish(adapter, NAME)
    assert NAME not in server.models


def test_model_that_was_there_before_is_not_deleted_when_its_proof_fails(
    server: FakeOllama, adapter: Path
) -> None:
    serving = engine(server)
    serving.publish(adapter, NAME)
    server.on["/api/chat"] = replies(503, "server busy, please try again")
    with pytest.raises(ServingUnavailable):
        serving.publish(adapter, NAME)
    assert NAME in server.models


# ---- answers ---------------------------------------------------------------------------------------


def test_requests_refuse_truncation_and_keep_the_context_in_the_model(server: FakeOllama) -> None:
    serving = engine(server)
    serving.generate(NAME, MESSAGES, GenerateOptions(seed=3))
    serving.generate(None, MESSAGES, GenerateOptions())
    named, plain = (body for _, path, body in server.asked if path == "/api/chat")
    assert named["truncate"] is False and named["stream"] is False
    assert named["options"] == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "num_predict": 256,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "seed": 3,
    }
    assert plain["model"] == BASE and plain["options"]["num_ctx"] == 512 and "seed" not in plain["options"]


@pytest.mark.parametrize(("reason", "written", "stopped"), [("stop", 8, True), ("length", 8, False)])
def test_answer_says_whether_it_ended_by_itself_or_at_the_limit(
    server: FakeOllama, reason: str, written: int, stopped: bool
) -> None:
    server.on["/api/chat"] = lambda _: httpx.Response(
        200, json=answered(" Dear Anna\n", done_reason=reason, eval_count=written)
    )
    assert engine(server).generate(NAME, MESSAGES, SHORT) == Generated(text="Dear Anna", stopped=stopped)


CHAT_ERRORS: list[tuple[Answer, type[OwnvoiceError], str]] = [
    (replies(503, "server busy, please try again."), ServingUnavailable, "busy"),
    (replies(502, "bad gateway"), ServingUnavailable, "busy"),
    (
        replies(500, "model failed to load, this may be due to resource limitations"),
        ServingUnavailable,
        "busy",
    ),
    (replies(500, "llama-server process has terminated: signal: killed"), ServingUnavailable, "memory"),
    (replies(404, f"model '{NAME}' not found"), ServingError, "no such model"),
    (replies(403, ""), ServingError, "HTTP 403"),
    (replies(500, "Failed to parse input at pos 0: marsupilami"), ServingError, "HTTP 500"),
    (
        replies(
            400,
            '{"error":{"code":400,"message":"request (3009 tokens) exceeds the available context size",'
            '"type":"exceed_context_size_error","n_prompt_tokens":3009,"n_ctx":512}}',
        ),
        ServingError,
        "3009 tokens; the context holds 512",
    ),
    (
        lambda _: httpx.Response(200, text="<html>a portal</html>"),
        ServingError,
        "does not answer like Ollama",
    ),
    (lambda _: httpx.Response(200, json=[]), ServingError, "does not answer like Ollama"),
    (lambda _: httpx.Response(200, json={"done": True}), ServingError, "does not answer like Ollama"),
    (
        lambda _: httpx.Response(200, json=answered("", done_reason="length", eval_count=3)),
        ServingError,
        "cut after 3 tokens",
    ),
    (raises(httpx.ConnectError("refused")), ServingUnavailable, "ollama serve"),
    (raises(httpx.ReadTimeout("slow")), ServingUnavailable, "within 5 s"),
    (raises(httpx.RemoteProtocolError("closed")), ServingUnavailable, "broke the connection"),
]


@pytest.mark.parametrize(("answer", "kind", "says"), CHAT_ERRORS)
def test_errors_of_an_answer_are_told_apart_and_quote_no_mail(
    server: FakeOllama, answer: Answer, kind: type[OwnvoiceError], says: str
) -> None:
    server.on["/api/chat"] = answer
    with pytest.raises(kind, match=says) as error:
        engine(server).generate(NAME, MESSAGES, SHORT)
    assert "marsupilami" not in str(error.value)


def test_missing_system_message_is_refused_before_anything_is_sent(server: FakeOllama) -> None:
    with pytest.raises(ServingError, match="system message"):
        engine(server).generate(NAME, MESSAGES[1:], SHORT)
    assert server.asked == []


@pytest.mark.parametrize("path", ["/api/show", "/api/delete", "/api/tags"])
def test_errors_of_the_official_client_become_ours(server: FakeOllama, path: str) -> None:
    calls: dict[str, Callable[[], object]] = {
        "/api/show": engine(server).base_ready,
        "/api/delete": lambda: engine(server).remove(NAME),
        "/api/tags": engine(server).list,
    }
    for answer, kind in (
        (replies(503, "server busy"), ServingUnavailable),
        (raises(httpx.ConnectError("refused")), ServingUnavailable),
        (raises(httpx.ReadTimeout("slow")), ServingUnavailable),
        (replies(500, "open /root/x/y: denied"), ServingError),
    ):
        server.on = {path: answer}
        with pytest.raises(kind) as error:
            calls[path]()
        assert "/root" not in str(error.value)


def test_removing_unloads_first_and_says_whether_it_was_there(server: FakeOllama) -> None:
    server.models[NAME] = shown(("1" * 64,))
    server.on["/api/ps"] = lambda _: httpx.Response(200, json={"models": [{"model": NAME}]})
    serving = engine(server)
    assert serving.remove(NAME) is True
    unload = next(body for _, path, body in server.asked if path == "/api/generate")
    assert unload["model"] == NAME and unload["keep_alive"] == 0 and not unload.get("prompt")
    assert serving.remove(NAME) is False
