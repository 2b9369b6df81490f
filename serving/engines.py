"""Open the serving engine that the settings name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from serving.base import Serving
from training.errors import ConfigError
from training.schemas import ChatMessage

MOST_LANES = 4
"""Engines side by side on one base. They share its weights in memory; a context of 2,048 tokens costs each of
them 47 MB with SmolLM2-135M and 256 MB with an 8B base."""


def open_serving(
    engine: str,
    *,
    base_gguf: Path | None,
    ollama_url: str | None,
    ollama_base: str,
    adapters_dir: Path,
    num_ctx: int,
    architecture: str,
    ollama_template: str | None = None,
    expected_prompt: Callable[[list[ChatMessage]], str] | None = None,
    count_tokens: Callable[[str], int] | None = None,
    many: bool = False,
) -> Serving:
    """Return an engine; it starts and asks nothing until it is used. `close()` it when done.

    `expected_prompt` and `count_tokens` are the training template and tokenizer, which the Ollama engine
    compares its server with. Raises ConfigError when the engine lacks what it needs. Engines are imported
    here, so that a command that serves nothing does not pay for them.

    `many` is for callers with many questions: they can ask `at_once` of them side by side, and a single one
    is answered a little later (by a fifth, on two cores).
    """
    if engine == "llamacpp":
        if base_gguf is None:
            raise ConfigError(
                "The engine llamacpp needs a base model with a local GGUF file. Choose another base model, "
                "or set OLLAMA_BASE_URL to serve with Ollama."
            )
        from serving.lanes import Lanes
        from serving.llamacpp import LlamaCppServing, usable_processors

        lanes = min(MOST_LANES, usable_processors()) if many else 1
        engines = [
            LlamaCppServing(
                base_gguf,
                adapters_dir,
                context_tokens=num_ctx,
                threads=usable_processors() // lanes,
                expected_prompt=expected_prompt,
            )
            for _ in range(lanes)
        ]
        return Lanes(engines) if lanes > 1 else engines[0]
    if engine == "ollama":
        if not ollama_url:
            raise ConfigError("The engine ollama needs a server: set OLLAMA_BASE_URL.")
        from serving.ollama import OllamaServing

        return OllamaServing(
            ollama_url,
            ollama_base,
            num_ctx=num_ctx,
            architecture=architecture,
            template=ollama_template,
            expected_prompt=expected_prompt,
            count_tokens=count_tokens,
            base_gguf=base_gguf,
        )
    raise ConfigError(f"There is no serving engine {engine!r}. Set OWNVOICE_SERVING to llamacpp or ollama.")
