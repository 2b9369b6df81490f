"""The serving seam: what an engine must do to answer in a person's voice.

Three engines implement `Serving`: `serving.ollama` (production), `serving.llamacpp` (embedded) and, later,
`serving.vllm`. Engines are given plain arguments (no settings, no database).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Protocol

from training.schemas import ChatMessage, Generated, GenerateOptions, Published, ServedModel


class Serving(Protocol):
    """One serving engine. Every method may raise `ServingUnavailable` (retry) or `ServingError`."""

    engine: str
    at_once: int
    """Answers that it gives at the same time; further requests wait for one of them."""

    def base_ready(self) -> None:
        """Return when the base can serve; never downloads it. Raises ServingUnavailable, ServingError."""

    def base_digest(self) -> str:
        """Return what tells this base's weights from any others, for what is remembered of its answers."""

    def publish(self, adapter: Path, name: str) -> Published:
        """Make the GGUF file `adapter` answer under the exact `name`. Raises AdapterRefused (final)."""

    def verify(self, name: str, digest: str) -> None:
        """Prove that `name` is the base plus exactly the adapter with `digest`, and that it generates."""

    def generate(self, name: str | None, messages: list[ChatMessage], options: GenerateOptions) -> Generated:
        """Answer `messages` with adapter `name`, or with the plain base when `name` is None.

        The first message must be a system message (raises ServingError otherwise): without one, servers
        disagree about the default system prompt and the model sees a prompt it was not trained on.
        """

    def render(self, messages: list[ChatMessage]) -> str:
        """Return the prompt text that the engine would feed to the model for `messages`."""

    def remove(self, name: str) -> bool:
        """Remove `name`; True when it was there."""

    def list(self) -> list[ServedModel]:
        """List what is served."""

    def close(self) -> None:
        """Release processes and connections that this object started.

        Of the embedded engine, answers that another thread waits for end with ServingUnavailable.
        """


def adapter_name(user_id: str, version: int) -> str:
    """Return the exact serving name `emailai-<user>:v<k>` for a user's adapter version."""
    return f"{voice_name(user_id)}:v{version}"


def voice_name(user_id: str) -> str:
    """Return `emailai-<user>`, what stands before the colon in the names of all of a user's adapters.

    Servers match names without regard to case, so an id is folded to lower case; an id that folding or
    the allowed alphabet changes gets a digest suffix, so that two ids never share a name.
    """
    folded = re.sub(r"[^a-z0-9_.-]", "-", user_id.lower())
    if folded != user_id or len(folded) > 60:
        folded = f"{folded[:50]}-{hashlib.sha256(user_id.encode()).hexdigest()[:12]}"
    return f"emailai-{folded}"
