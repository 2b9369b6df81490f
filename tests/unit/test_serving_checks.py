"""What is refused before any server hears of it, and what is hidden from its error texts."""

from __future__ import annotations

import pytest

from serving.base import adapter_name
from serving.checks import check_messages, check_name, redact
from serving.engines import open_serving
from training.errors import ConfigError, ServingError
from training.schemas import ChatMessage


@pytest.mark.parametrize("name", ["emailai-cmgl819t:v1", "emailai-cmgl819t", "_x.y-z:v12", "a" * 80 + ":v1"])
def test_usable_names_pass(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("user_id", ["cmgl819t", "Anna@Example.com", "x" * 200, "Ünïcode", "../../etc"])
def test_every_user_id_gets_a_usable_name(user_id: str) -> None:
    check_name(adapter_name(user_id, 3))


@pytest.mark.parametrize(
    "name",
    [
        "emailai-CMGL819T:v1",
        "anna@example.com:v1",
        "emailai anna:v1",
        "",
        ":v1",
        "emailai-anna:",
        "emailai-anna:v1:v2",
        "../anna",
        "emailai/anna:v1",
        ".hidden",
        "emailai-anna:v1\n",
        "a" * 81,
        "emailai-anna:cloud",
        "emailai-anna:local",
        "emailai-anna:v1-cloud",
        "emailai-cloud",
    ],
)
def test_names_that_servers_confuse_are_refused(name: str) -> None:
    with pytest.raises(ServingError):
        check_name(name)


def test_conversation_without_its_system_message_is_refused() -> None:
    user = ChatMessage(role="user", content="marsupilami")
    system = ChatMessage(role="system", content="You write mail.")
    check_messages([system, user])
    for messages in ([], [user], [user, system], [system]):
        with pytest.raises(ServingError, match="system message") as error:
            check_messages(messages)
        assert "marsupilami" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("open /root/.ollama/models/blobs/sha256-22: no such file or directory", "open <path>: no such file"),
        (r"open C:\Users\anna\.ollama\blobs\sha256-22: not found", "open <path>: not found"),
        ('Get "https://registry.ollama.ai/v2/library/x": no route', "Get <path>: no route"),
        ("failed to load lora adapter '/srv/a b/x.gguf'", "failed to load lora adapter"),
        (
            "tensor 'blk.0.attn_v.weight' has incorrect shape",
            "tensor 'blk.0.attn_v.weight' has incorrect shape",
        ),
    ],
)
def test_paths_and_addresses_are_taken_out_of_error_texts(text: str, hidden: str) -> None:
    shown = redact(text)
    assert shown.startswith(hidden)
    assert not any(part in shown for part in ("root", "Users", "registry", "srv", "x.gguf"))


def test_long_error_texts_are_cut() -> None:
    assert len(redact("word " * 500)) <= 200


def test_engine_without_what_it_needs_says_which_setting_is_missing(tmp_path) -> None:  # type: ignore[no-untyped-def]
    facts = {"adapters_dir": tmp_path, "num_ctx": 512, "architecture": "llama", "ollama_base": "base:q4"}
    with pytest.raises(ConfigError, match="OLLAMA_BASE_URL"):
        open_serving("ollama", base_gguf=None, ollama_url=None, **facts)
    with pytest.raises(ConfigError, match="local GGUF"):
        open_serving("llamacpp", base_gguf=None, ollama_url=None, **facts)
    with pytest.raises(ConfigError, match="OWNVOICE_SERVING"):
        open_serving("vllm", base_gguf=None, ollama_url=None, **facts)
    assert open_serving("ollama", base_gguf=None, ollama_url="localhost:11434", **facts).engine == "ollama"
    assert open_serving("llamacpp", base_gguf=tmp_path / "x", ollama_url=None, **facts).engine == "llamacpp"
    assert not list(tmp_path.iterdir())
