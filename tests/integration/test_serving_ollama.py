"""The Ollama engine against the tests' Ollama: its rules were recorded, its answers are generated."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.checks import WARM_UP_MESSAGES
from serving.llamacpp import LlamaCppServing
from serving.ollama import OllamaServing
from tests.adapters import smollm2_gguf, write_adapter
from tests.ollama_server import OllamaServer
from training.errors import AdapterRefused, ServingError, ServingUnavailable
from training.schemas import ChatMessage, GenerateOptions

BASE = "smollm2-base:q4"
NUM_CTX = 512
MESSAGES = list(WARM_UP_MESSAGES)
GREEDY = GenerateOptions(temperature=0, seed=1, max_tokens=12)


def chatml(messages: list[ChatMessage]) -> str:
    turns = "".join(f"<|im_start|>{one.role}\n{one.content}<|im_end|>\n" for one in messages)
    return turns + "<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OllamaServer]:
    with OllamaServer(tmp_path_factory.mktemp("ollama")) as running:
        running.preload_base(BASE, smollm2_gguf())
        yield running


@pytest.fixture
def serving(server: OllamaServer) -> Iterator[OllamaServing]:
    opened = open_serving(server)
    yield opened
    opened.close()


def open_serving(server: OllamaServer, **changes: object) -> OllamaServing:
    arguments: dict[str, object] = {"num_ctx": NUM_CTX, "expected_prompt": chatml} | changes
    return OllamaServing(f"{server.url}/api", BASE, **arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "anna": write_adapter(folder / "anna.gguf", seed=1),
        "boris": write_adapter(folder / "boris.gguf", seed=2),
        "wide": write_adapter(folder / "wide.gguf", seed=3, inputs=512),
    }


def test_each_user_is_answered_by_their_own_adapter_as_the_embedded_engine_does(
    serving: OllamaServing, files: dict[str, Path], tmp_path: Path
) -> None:
    published = serving.publish(files["anna"], "emailai-anna:v1")
    serving.publish(files["boris"], "emailai-boris:v1")
    serving.verify("emailai-anna:v1", published.digest)
    texts = {
        name: serving.generate(name, MESSAGES, GREEDY)
        for name in ("emailai-anna:v1", "emailai-boris:v1", None)
    }
    assert len(set(texts.values())) == 3

    embedded = LlamaCppServing(smollm2_gguf(), tmp_path / "published", context_tokens=NUM_CTX, threads=1)
    try:
        embedded.publish(files["anna"], "emailai-anna:v1")
        assert embedded.generate("emailai-anna:v1", MESSAGES, GREEDY) == texts["emailai-anna:v1"]
        assert embedded.render(MESSAGES) == serving.render(MESSAGES) == chatml(MESSAGES)
    finally:
        embedded.close()


def test_answer_says_whether_it_ended_by_itself_or_at_the_limit(serving: OllamaServing) -> None:
    cut = serving.generate(None, MESSAGES, GenerateOptions(temperature=0, seed=1, max_tokens=3))
    assert not cut.stopped and cut.text
    whole = serving.generate(None, MESSAGES, GenerateOptions(temperature=0, seed=1, max_tokens=200))
    assert whole.stopped and whole.text.startswith(cut.text)


def test_adapter_that_does_not_fit_leaves_no_model_behind(
    serving: OllamaServing, files: dict[str, Path]
) -> None:
    before = serving.list()
    with pytest.raises(AdapterRefused, match="does not fit the base"):
        serving.publish(files["wide"], "emailai-carol:v1")
    assert serving.list() == before
    assert serving.generate(None, MESSAGES, GREEDY).text


def test_servers_from_0_34_on_take_and_refuse_the_same_adapters(
    files: dict[str, Path], tmp_path: Path
) -> None:
    with OllamaServer(tmp_path, "0.34.1") as newer:
        newer.preload_base(BASE, smollm2_gguf())
        serving = open_serving(newer)
        published = serving.publish(files["anna"], "emailai-anna:v1")
        with pytest.raises(AdapterRefused):
            serving.publish(files["wide"], "emailai-carol:v1")
        assert [(model.name, model.digest) for model in serving.list() if model.digest] == [
            ("emailai-anna:v1", published.digest)
        ]
        serving.close()


def test_name_keeps_its_first_adapter(serving: OllamaServing, files: dict[str, Path]) -> None:
    first = serving.publish(files["anna"], "emailai-dora:v1")
    assert serving.publish(files["anna"], "emailai-dora:v1") == first
    with pytest.raises(AdapterRefused, match="never re-pointed"):
        serving.publish(files["boris"], "emailai-dora:v1")
    serving.verify("emailai-dora:v1", first.digest)
    assert ("emailai-dora:v1", first.digest) in [(model.name, model.digest) for model in serving.list()]
    assert serving.remove("emailai-dora:v1") is True
    assert serving.remove("emailai-dora:v1") is False
    with pytest.raises(ServingError, match="not on the Ollama server"):
        serving.verify("emailai-dora:v1", first.digest)


def test_base_that_already_carries_an_adapter_is_not_stacked_on(
    serving: OllamaServing, server: OllamaServer, files: dict[str, Path]
) -> None:
    serving.publish(files["anna"], "emailai-erik:v1")
    stacked = OllamaServing(server.url, "emailai-erik:v1", num_ctx=NUM_CTX)
    with pytest.raises(ServingError, match="already carries an adapter"):
        stacked.publish(files["boris"], "emailai-erik:v2")
    stacked.close()


def test_template_other_than_the_training_one_is_not_published(
    server: OllamaServer, files: dict[str, Path]
) -> None:
    serving = open_serving(server, template="{{ range .Messages }}{{ .Content }}\n{{ end }}")
    with pytest.raises(ServingError, match="renders a test prompt differently"):
        serving.publish(files["anna"], "emailai-fred:v1")
    assert "emailai-fred:v1" not in [model.name for model in serving.list()]
    serving.close()


def test_prompt_longer_than_the_context_is_refused_with_its_token_count(serving: OllamaServing) -> None:
    long = [MESSAGES[0], ChatMessage(role="user", content="marsupilami " * 600)]
    with pytest.raises(ServingError, match=rf"tokens; the context holds {NUM_CTX}") as error:
        serving.generate(None, long, GREEDY)
    assert "marsupilami" not in str(error.value)


def test_model_missing_from_the_server_is_an_error_and_nothing_is_pulled(
    serving: OllamaServing, server: OllamaServer
) -> None:
    absent = OllamaServing(server.url, "llama3.1:8b", num_ctx=NUM_CTX)
    with pytest.raises(ServingError, match=r"ollama pull llama3\.1:8b"):
        absent.base_ready()
    absent.close()
    with pytest.raises(ServingError, match="no such model"):
        serving.generate("emailai-nobody:v1", MESSAGES, GREEDY)


def test_second_user_is_answered_while_the_first_keeps_asking(
    server: OllamaServer, files: dict[str, Path]
) -> None:
    serving = open_serving(server, timeout_s=30.0)
    serving.publish(files["anna"], "emailai-anna:v1")
    serving.publish(files["boris"], "emailai-boris:v1")
    stop = threading.Event()
    asked = [0, 0]

    def keep_asking(client: int) -> None:
        while not stop.is_set():
            serving.generate("emailai-anna:v1", MESSAGES, GREEDY)
            asked[client] += 1

    steady = [threading.Thread(target=keep_asking, args=(client,)) for client in range(2)]
    for thread in steady:
        thread.start()
    try:
        while sum(asked) < 2:
            stop.wait(0.01)
        before = sum(asked)
        serving.generate("emailai-boris:v1", MESSAGES, GREEDY)
        # Without turns a live server let 54 of Anna's requests pass before Boris's first.
        assert sum(asked) - before <= 6
    finally:
        stop.set()
        for thread in steady:
            thread.join(60)
        serving.close()


def test_server_that_hangs_or_breaks_off_is_unavailable_and_leaves_no_model(
    server: OllamaServer, files: dict[str, Path]
) -> None:
    patient = open_serving(server)
    hurried = open_serving(server, timeout_s=1.0)
    server.fail_next("/api/chat", 1, "hang", hang_s=2)
    with pytest.raises(ServingUnavailable, match="within 1 s"):
        hurried.generate(None, MESSAGES, GREEDY)
    for path in ("/api/create", "/api/chat"):
        server.fail_next(path, 1, "close")
        with pytest.raises(ServingUnavailable):
            patient.publish(files["boris"], "emailai-gina:v1")
        assert "emailai-gina:v1" not in [model.name for model in patient.list()]
    assert patient.publish(files["boris"], "emailai-gina:v1")
    hurried.close()
    patient.close()


def test_no_server_at_the_address_says_how_to_start_one() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ServingUnavailable, match=rf"127\.0\.0\.1:{port}.*ollama serve"):
        OllamaServing(f"http://127.0.0.1:{port}", BASE).base_ready()


def test_a_server_without_the_base_gets_it_from_our_own_file(tmp_path: Path, files: dict[str, Path]) -> None:
    with OllamaServer(tmp_path / "empty") as bare:
        serving = open_serving(bare, base_gguf=smollm2_gguf())
        try:
            serving.base_ready()
            assert serving.publish(files["anna"], "emailai-anna:v1").digest
            serving.base_ready()
        finally:
            serving.close()
        creates = [r.json["model"] for r in bare.requests if r.path == "/api/create"]
        assert creates == [BASE, "emailai-anna:v1"]


def test_without_the_file_a_missing_base_is_named_and_never_pulled(tmp_path: Path) -> None:
    with OllamaServer(tmp_path / "empty") as bare:
        serving = open_serving(bare)
        try:
            with pytest.raises(
                ServingError, match=f"{BASE} is not on the Ollama server.*OWNVOICE_OLLAMA_BASE"
            ):
                serving.base_ready()
        finally:
            serving.close()
        assert not [r for r in bare.requests if r.path in ("/api/create", "/api/pull")]
