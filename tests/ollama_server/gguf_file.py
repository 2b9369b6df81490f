"""Reads the header of a GGUF file and refuses a damaged one with Ollama's own words.

Format: ggml/docs/gguf.md; checks and texts: Ollama 0.33.0-rc2, `fs/ggml/gguf.go`. Written against the format,
not with the `gguf` package's reader, because its errors differ from Ollama's.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import gguf
import numpy as np

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_FILE_TYPES = {
    int(item): item.name.removeprefix("MOSTLY_").removeprefix("ALL_") for item in gguf.LlamaFileType
}


class BadGguf(Exception):
    """The file is not a whole GGUF file; the text is Ollama's."""


class TensorInfo(NamedTuple):
    name: str
    type: str
    shape: tuple[int, ...]
    """ggml order: the fastest dimension first."""


class GgufHeader(NamedTuple):
    kv: dict[str, Any]
    """Metadata; arrays are lists."""
    tensors: tuple[TensorInfo, ...]
    kv_offsets: tuple[int, int, int]
    """Bytes from the file's start to the first metadata entry, the last one, and behind it."""

    @property
    def architecture(self) -> str:
        return str(self.kv.get("general.architecture", "unknown"))

    @property
    def kind(self) -> str:
        return str(self.kv.get("general.type", "unknown"))

    @property
    def file_type(self) -> str:
        value = int(self.kv.get("general.file_type", 0))
        return _FILE_TYPES.get(value, "unknown") if value else "unknown"

    @property
    def parameter_count(self) -> int:
        return int(self.kv["general.parameter_count"])


def has_gguf_magic(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def read_header(path: Path) -> GgufHeader:
    """Read and check the header; cached, because blobs never change under one name.

    Raises:
        BadGguf: truncated, or a tensor reaches past the end of the file.
    """
    stat = path.stat()
    return _read_header(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _read_header(path: Path, file_size: int, mtime_ns: int) -> GgufHeader:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise BadGguf("invalid file magic")
        _, tensor_count, kv_count = struct.unpack("<IQQ", _take(file, 20))
        kv: dict[str, Any] = {}
        first_kv = last_kv = file.tell()
        for _ in range(kv_count):
            last_kv = file.tell()
            key = _string(file)
            kv[key] = _value(file, _unpack(file, "I"))
        kv_offsets = (first_kv, last_kv, file.tell())
        tensors, ends, parameters = [], [], 0
        for _ in range(tensor_count):
            name = _named("name", _string, file)
            dimensions = _named("dimensions", _unpack, file, "I")
            if dimensions > 4:
                raise BadGguf(f'tensor "{name}" dimensions {dimensions} exceeds maximum 4')
            shape = tuple(_named("shape", _unpack, file, "Q") for _ in range(dimensions))
            kind = _named("kind", _unpack, file, "I")
            offset = _named("offset", _unpack, file, "Q")
            elements = int(np.prod(shape, dtype=np.uint64)) if shape else 1
            ggml_type = gguf.GGMLQuantizationType(kind)
            block, block_bytes = gguf.GGML_QUANT_SIZES[ggml_type]
            tensors.append(TensorInfo(name, ggml_type.name, shape))
            ends.append(offset + elements // block * block_bytes)
            parameters += elements
        alignment = int(kv.get("general.alignment", 32))
        start = -(-file.tell() // alignment) * alignment
    for tensor, end in zip(tensors, ends, strict=True):
        if start + end > file_size:
            raise BadGguf(
                f'tensor "{tensor.name}" offset+size ({start + end}) exceeds file size ({file_size})'
            )
    kv["general.parameter_count"] = parameters
    return GgufHeader(kv, tuple(tensors), kv_offsets)


def _take(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise BadGguf("unexpected EOF" if data else "EOF")
    return data


def _named(part: str, read: Any, file: BinaryIO, *args: Any) -> Any:
    try:
        return read(file, *args)
    except BadGguf as exc:
        raise BadGguf(f"failed to read tensor {part}: {exc}") from exc


def _unpack(file: BinaryIO, code: str) -> Any:
    value = struct.unpack(f"<{code}", _take(file, struct.calcsize(f"<{code}")))[0]
    # A float32 is kept in its shortest spelling (1e-05, not 9.99e-06), which is how Go prints it.
    return float(str(np.float32(value))) if code == "f" else value


def _string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", _take(file, 8))
    return _take(file, length).decode("utf-8", "replace") if length else ""


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        item_kind, count = struct.unpack("<IQ", _take(file, 12))
        if item_kind in _SCALARS:
            code = _SCALARS[item_kind]
            return list(struct.unpack(f"<{count}{code}", _take(file, count * struct.calcsize(f"<{code}"))))
        return [_value(file, item_kind) for _ in range(count)]
    if kind not in _SCALARS:
        raise BadGguf(f"invalid type: {kind}")
    return _unpack(file, _SCALARS[kind])
