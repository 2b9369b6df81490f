"""What every engine checks before it asks a server anything, and what it hides afterwards."""

from __future__ import annotations

import re
from collections.abc import Sequence

from training.errors import ContextExceeded, ServingError
from training.schemas import ChatMessage, GenerateOptions

_PART = r"[a-z0-9_][a-z0-9_.-]{0,79}"
_NAME = re.compile(rf"{_PART}(:{_PART})?")

# Neutral text of ours: warm-ups and template checks never carry anybody's mail.
WARM_UP_MESSAGES = (
    ChatMessage(role="system", content="You are an email writing assistant."),
    ChatMessage(role="user", content="Write one sentence thanking Anna for the report."),
)
WARM_UP_OPTIONS = GenerateOptions(temperature=0, seed=1, max_tokens=8)


def check_name(name: str) -> None:
    """Raise ServingError unless `name` is a lower-case `model[:tag]` that every engine can hold.

    Ollama matches names without regard to case (a second spelling replaces the first one's adapter) and
    routes the tags `cloud`, `local` and `…-cloud` elsewhere; the llamacpp engine uses names as file names.
    """
    if not _NAME.fullmatch(name):
        raise ServingError(
            f"{name[:100]!r} is not a usable adapter name: up to 80 of a-z 0-9 _ - . on each side of one "
            "optional colon, lower case only. Build it with serving.base.adapter_name."
        )
    tag = name.partition(":")[2]
    if tag in ("cloud", "local") or tag.endswith("-cloud") or (not tag and name.endswith("-cloud")):
        raise ServingError(f"The tag of {name!r} is reserved by Ollama for remote models. Use v1, v2, …")


def check_messages(messages: Sequence[ChatMessage]) -> None:
    """Raise ServingError unless `messages` start with a system message and hold one more.

    Without an explicit system message llama.cpp and the Hugging Face template insert a default one and
    Ollama does not: the model would see a prompt that it was not trained on.
    """
    if len(messages) < 2 or messages[0].role != "system":
        roles = ", ".join(message.role for message in messages[:4]) or "none"
        raise ServingError(
            f"A conversation needs a system message first and a user message after it; got {len(messages)} "
            f"message(s) with roles: {roles}. Add the system message that the adapter was trained with."
        )


def context_exceeded(prompt_tokens: object, context_tokens: object) -> ContextExceeded:
    """Return the error for a prompt that does not fit."""
    return ContextExceeded(
        f"The prompt has {prompt_tokens} tokens; the context holds {context_tokens}. "
        "Shorten the message being answered, or serve with a larger context."
    )


def answer_cut(prompt_tokens: object, answer_tokens: object, context_tokens: object) -> ContextExceeded:
    """Return the error for an answer that ran into the end of the context before it was finished."""
    return ContextExceeded(
        f"The answer was cut after {answer_tokens} tokens: with a prompt of {prompt_tokens} tokens the "
        f"context of {context_tokens} is full. Shorten the message being answered, or serve with a larger "
        "context."
    )


def redact(text: str, limit: int = 200) -> str:
    """Return a server's error text without file paths and addresses, at most `limit` characters.

    Ollama's texts name folders of its machine (`open /…/blobs/sha256-…: no such file or directory`).
    """
    flat = " ".join(text.split())
    # A word that holds a slash or backslash between word characters is a path or an address.
    flat = re.sub(r"""['"(]*(?:[A-Za-z]:)?[^\s'"]*[/\\][^\s'"]*[^\s'":,;).]['")]*""", "<path>", flat)
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def check_same_prompt(name: str, rendered: str, expected: str) -> None:
    """Raise ServingError unless the engine renders the test prompt byte for byte as training did."""
    if rendered == expected:
        return
    pairs = enumerate(zip(rendered, expected, strict=False))
    same = next((n for n, pair in pairs if pair[0] != pair[1]), min(len(rendered), len(expected)))
    raise ServingError(
        f"{name} renders a test prompt differently from training: {len(rendered)} and {len(expected)} "
        f"characters, different from character {same} on. Give both the same chat template "
        "(configs/base_models.yaml)."
    )
