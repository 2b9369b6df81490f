"""Model names as Ollama reads them: `[host/][namespace/]model[:tag]`, matched without regard to case.

Rules of Ollama 0.33.0-rc2, `types/model/name.go` and `internal/modelref`: model and tag start with a letter,
a digit or `_`, then also `-` and `.`, 1–80 bytes; a namespace has no `.`; digests (`@…`) are not names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_MODEL_OR_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")


class ModelName(NamedTuple):
    """One fully spelled name; `is_valid` says whether Ollama would take it."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def is_valid(self) -> bool:
        return bool(
            _HOST.fullmatch(self.host)
            and _NAMESPACE.fullmatch(self.namespace)
            and _MODEL_OR_TAG.fullmatch(self.model)
            and _MODEL_OR_TAG.fullmatch(self.tag)
        )

    @property
    def short(self) -> str:
        """The form of /api/tags and /api/ps: default host and namespace are left out, the tag never."""
        prefix = ""
        if self.host.lower() != DEFAULT_HOST:
            prefix = f"{self.host}/{self.namespace}/"
        elif self.namespace.lower() != DEFAULT_NAMESPACE:
            prefix = f"{self.namespace}/"
        return f"{prefix}{self.model}:{self.tag}"


def parse_name(text: str) -> ModelName:
    """Split `text` and fill in the defaults; the result may be invalid."""
    tag = ""
    if text.rfind(":") > text.rfind("/"):
        text, tag = text.rsplit(":", 1)
        tag = tag or "!missing!"  # "model:" promises a tag: Ollama refuses it rather than assume latest
    parts = text.rsplit("/", 2)
    model = parts[-1]
    namespace = parts[-2] if len(parts) > 1 else DEFAULT_NAMESPACE
    host = parts[-3] if len(parts) > 2 else DEFAULT_HOST
    host = host.split("://", 1)[-1]
    return ModelName(host or "!missing!", namespace or "!missing!", model, tag or DEFAULT_TAG)


def split_source(text: str) -> tuple[str, str]:
    """Return (name, source): `:cloud` and `-cloud` tags mean a remote model, `:local` is only stripped."""
    head, colon, suffix = text.strip().rpartition(":")
    if colon:
        if suffix.lower() in ("cloud", "local"):
            return head, suffix.lower()
        if "/" not in suffix and suffix.lower().endswith("-cloud"):
            return f"{head}:{suffix[:-6]}", "cloud"
    return text.strip(), ""


def existing_name(name: ModelName, known: Iterable[ModelName]) -> ModelName:
    """Return `name` in the spelling that stored models use, part by part, as `getExistingName` does."""
    parts = list(name)
    for other in known:
        parts = [
            theirs if theirs.lower() == mine.lower() else mine
            for mine, theirs in zip(parts, other, strict=True)
        ]
    return ModelName(*parts)
