"""Look into a GGUF adapter before any server does: what it is, whether it is whole, its digest.

Servers are bad judges of adapter files: Ollama accepts any shape at create and fails at the first chat; some
versions take a file that is no adapter as a new base; llama.cpp loads NaN weights without a word.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.errors import AdapterRefused

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class AdapterFacts:
    """What a GGUF LoRA file says about itself."""

    digest: str
    """`sha256:` + 64 lower-case hex digits of the file's bytes."""
    architecture: str
    alpha: float
    rank: int
    """The largest rank of its tensors; llama.cpp scales each pair by alpha / rank."""
    tensors: int


def file_digest(path: Path) -> str:
    """Return `sha256:<hex>` of the file, reading 1 MiB at a time. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def inspect_adapter(path: Path, *, architecture: str | None = None) -> AdapterFacts:
    """Return the facts of the adapter file, or raise AdapterRefused with one sentence.

    `architecture`: llama.cpp's name of the base's architecture; None leaves that to the engine. The keys are
    those that llama.cpp's loader reads (src/llama-adapter.cpp): general.type, adapter.type,
    adapter.lora.alpha, and tensors in pairs `<base tensor>.lora_a` (rank, in) / `.lora_b` (out, rank).
    """
    import gguf  # here: costs 0.2 s, and the command line imports this module for every command

    if not path.is_file():
        raise AdapterRefused(f"There is no adapter file {path.name!r}. Export the adapter again.")
    try:
        reader = gguf.GGUFReader(path)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except Exception as exc:  # gguf lets numpy's errors through: which one depends on where the file ends
        raise AdapterRefused(
            f"{path.name} ({path.stat().st_size} bytes) is not a readable GGUF file: it is cut off "
            "or something else. Export the adapter again."
        ) from exc

    _require(path, reader, "general.type", "adapter")
    _require(path, reader, "adapter.type", "lora")
    found = _text(reader, "general.architecture")
    if architecture is not None and found != architecture:
        raise AdapterRefused(
            f"{path.name} was made for a base of architecture {found!r}; the base served here is "
            f"{architecture!r}. Train on this base, or serve the other one."
        )
    alpha = float(_value(reader, "adapter.lora.alpha") or 0)
    if not (math.isfinite(alpha) and alpha > 0):
        # llama.cpp takes alpha 0 as "scale 1, not divided by the rank": not the adapter that was trained.
        raise AdapterRefused(
            f"{path.name} has adapter.lora.alpha {alpha}; it must be above 0. Export it again."
        )
    return AdapterFacts(
        digest=file_digest(path),
        architecture=found,
        alpha=alpha,
        rank=_checked_rank(path, tensors),
        tensors=len(tensors),
    )


def _checked_rank(path: Path, tensors: dict[str, Any]) -> int:
    """Return the largest rank; raise AdapterRefused for a lone half, unequal ranks or weights not finite."""
    import gguf

    if not tensors:
        raise AdapterRefused(f"{path.name} holds no tensors. Export the adapter again.")
    rank = 0
    for name, tensor in tensors.items():
        stem, _, half = name.rpartition(".")
        other = tensors.get(f"{stem}.{'lora_b' if half == 'lora_a' else 'lora_a'}")
        if half not in ("lora_a", "lora_b") or other is None:
            raise AdapterRefused(
                f"{path.name} holds the tensor {name!r}, which is not one half of a LoRA pair (.lora_a with "
                ".lora_b). Train without DoRA, biases and saved modules."
            )
        try:
            weights = gguf.dequantize(tensor.data, tensor.tensor_type)
        except (ValueError, NotImplementedError) as exc:
            raise AdapterRefused(f"{path.name}: the tensor {name!r} cannot be read ({exc}).") from exc
        if not np.isfinite(weights).all():
            raise AdapterRefused(
                f"{path.name}: the tensor {name!r} holds numbers that are not finite (NaN or infinity): the "
                "training diverged. Train again with a lower learning rate."
            )
        if half == "lora_b":
            # GGUF lists the fastest axis first: lora_a is (in, rank), lora_b is (rank, out).
            rank_b, rank_a = int(tensor.shape[0]), int(other.shape[-1])
            if rank_a != rank_b:
                raise AdapterRefused(
                    f"{path.name}: the pair {stem!r} has ranks {rank_a} and {rank_b}; they must be equal."
                )
            rank = max(rank, rank_b)
    return rank


def _require(path: Path, reader: Any, key: str, wanted: str) -> None:
    found = _text(reader, key)
    if found != wanted:
        raise AdapterRefused(f"{path.name} has {key} {found!r}; an adapter has {wanted!r}. Export it again.")


def _text(reader: Any, key: str) -> str:
    value = _value(reader, key)
    return value if isinstance(value, str) else ""


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()
