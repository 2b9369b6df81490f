"""Ollama's models folder: content-addressed blobs, manifests by name, and what a stored model means.

Layout and rules of Ollama 0.33.0-rc2 (`manifest/*.go`, `server/images.go`): `blobs/sha256-<hex>` and
`manifests/<host>/<namespace>/<model>/<tag>`, so the state survives a restart of the server.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests.ollama_server.gguf_file import GgufHeader, has_gguf_magic, read_header
from tests.ollama_server.go_json import encode, format_option, timestamp
from tests.ollama_server.go_template import GoTemplate
from tests.ollama_server.names import ModelName, existing_name

MODEL = "application/vnd.ollama.image.model"
ADAPTER = "application/vnd.ollama.image.adapter"
TEMPLATE = "application/vnd.ollama.image.template"
SYSTEM = "application/vnd.ollama.image.system"
PARAMS = "application/vnd.ollama.image.params"
MESSAGES = "application/vnd.ollama.image.messages"
LICENSE = "application/vnd.ollama.image.license"
CONFIG = "application/vnd.docker.container.image.v1+json"

PRUNE_GRACE_S = 3600.0
"""Unreferenced blobs younger than this survive a start (`layerPruneGracePeriod`)."""
_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class InvalidDigest(Exception):
    def __init__(self) -> None:
        super().__init__("invalid digest format")


class UnknownModel(Exception):
    """No manifest under that name."""


@dataclass(frozen=True)
class Layer:
    """One blob of a manifest; `status` is the line that create streams for it."""

    media_type: str
    digest: str
    size: int
    source: str = ""
    """The manifest's `from`: the model's or file's name that the layer came from."""
    status: str = ""

    def to_json(self) -> dict[str, Any]:
        result: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return {**result, "from": self.source} if self.source else result


@dataclass(frozen=True)
class Manifest:
    config: Layer
    layers: tuple[Layer, ...]
    digest: str = ""
    """Hex digest of the manifest's bytes: `digest` of /api/tags and /api/ps."""
    modified_ns: int = 0

    @property
    def size(self) -> int:
        return sum(layer.size for layer in (*self.layers, self.config))


@dataclass
class StoredModel:
    """What chat, show and the scheduler know of a model; read from the manifest on every request."""

    name: ModelName
    manifest: Manifest
    config: dict[str, Any]
    model_path: Path
    parent_model: str = ""
    adapter_paths: list[Path] = field(default_factory=list)
    template: GoTemplate | None = None
    """None when no template layer exists; then the GGUF's own jinja template is used."""
    system: str = ""
    licenses: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)

    @property
    def header(self) -> GgufHeader:
        return read_header(self.model_path)

    @property
    def capabilities(self) -> list[str]:
        found = [] if any(key.endswith(".pooling_type") for key in self.header.kv) else ["completion"]
        jinja = str(self.header.kv.get("tokenizer.chat_template", ""))
        fields = self.template.fields if self.template else set()
        if "tools" in fields or (not self.template and ("tools" in jinja or "tool_call" in jinja)):
            found.append("tools")
        return [*found, "insert"] if "suffix" in fields else found

    @property
    def details(self) -> dict[str, Any]:
        return {
            "parent_model": self.parent_model,
            "format": self.config["model_format"],
            "family": self.config["model_family"],
            "families": self.config["model_families"],
            "parameter_size": self.config["model_type"],
            "quantization_level": self.config["file_type"],
        }


class ModelStore:
    """Blobs and manifests below `folder`. Thread-safe where Ollama is; writes are not atomic, as there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = folder / "blobs"
        self.manifests = folder / "manifests"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.manifests.mkdir(parents=True, exist_ok=True)
        self._linked_lock = threading.Lock()

    # ---- blobs

    def blob_path(self, digest: str) -> Path:
        """Return where the blob is or would be. Raises InvalidDigest."""
        if not _DIGEST.fullmatch(digest):
            raise InvalidDigest
        return self.blobs / digest.replace(":", "-")

    def add_blob(self, source: Readable, media_type: str = "") -> Layer:
        """Store all bytes of `source` under their real digest."""
        digest, size = hashlib.sha256(), 0
        with tempfile.NamedTemporaryFile(dir=self.blobs, prefix="upload-", delete=False) as temporary:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
                temporary.write(chunk)
        name = f"sha256:{digest.hexdigest()}"
        path = self.blob_path(name)
        known = path.exists()
        if known:
            os.unlink(temporary.name)
        else:
            os.replace(temporary.name, path)
        verb = "using existing layer" if known else "creating new layer"
        return Layer(media_type, name, size, status=f"{verb} {name}")

    def link_blob(self, file: Path, digest: str) -> None:
        """Make `file` a blob without copying it: a hard link, or a symbolic one across devices."""
        path = self.blob_path(digest)
        with self._linked_lock:
            if path.exists():
                return
            try:
                os.link(file, path)
            except OSError:
                path.symlink_to(file)

    def copy_with_other_digest(self, digest: str) -> Layer:
        """Store a copy of a GGUF blob that says the same in other bytes.

        Ollama 0.33 stores what llama-quantize COPY wrote: never the uploaded digest, though as many bytes
        when measured. Here the last metadata entry moves to the front.
        """
        path = self.blob_path(digest)
        first, last, end = read_header(path).kv_offsets
        with (
            tempfile.NamedTemporaryFile(dir=self.blobs, prefix="COPY") as temporary,
            path.open("rb") as source,
        ):
            head, entries, moved = source.read(first), source.read(last - first), source.read(end - last)
            temporary.write(head + moved + entries)
            shutil.copyfileobj(source, temporary, 1 << 20)
            temporary.seek(0)
            return self.add_blob(temporary, MODEL)

    def layer_of_blob(self, digest: str, media_type: str, source: str) -> Layer:
        size = self.blob_path(digest).stat().st_size
        return Layer(media_type, digest, size, source, f"using existing layer {digest}")

    def prune_orphans(self) -> None:
        """Remove what no manifest names, when it is older than the grace period; Ollama does so at start."""
        used = self._used_digests()
        for path in self.blobs.iterdir():
            old = time.time() - path.lstat().st_mtime > PRUNE_GRACE_S
            if old and path.name.replace("-", ":", 1) not in used:
                path.unlink()

    # ---- manifests

    def names(self) -> list[ModelName]:
        found = (path.relative_to(self.manifests).parts for path in self.manifests.glob("*/*/*/*"))
        return sorted(ModelName(*parts) for parts in found if len(parts) == 4)

    def existing(self, name: ModelName) -> ModelName:
        return existing_name(name, self.names())

    def manifest(self, name: ModelName) -> Manifest:
        """Raises UnknownModel."""
        path = self.manifests.joinpath(*name)
        try:
            text = path.read_bytes()
            modified_ns = path.stat().st_mtime_ns
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise UnknownModel(name.short) from exc
        data = json.loads(text)
        config, *layers = (
            Layer(item["mediaType"], item["digest"], item["size"], item.get("from", ""))
            for item in (data["config"], *data["layers"])
        )
        return Manifest(config, tuple(layers), hashlib.sha256(text).hexdigest(), modified_ns)

    def write_manifest(self, name: ModelName, config: Layer, layers: list[Layer]) -> None:
        path = self.manifests.joinpath(*name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            encode(
                {
                    "schemaVersion": 2,
                    "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                    "config": config.to_json(),
                    "layers": [layer.to_json() for layer in layers],
                }
            )
            + b"\n"
        )

    def copy_manifest(self, source: ModelName, destination: ModelName) -> None:
        """Overwrites the destination; prunes nothing. Raises UnknownModel."""
        self.manifest(source)
        if source != destination:
            path = self.manifests.joinpath(*destination)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.manifests.joinpath(*source).read_bytes())

    def delete(self, name: ModelName) -> None:
        """Remove the manifest, then every blob that only it used. Raises UnknownModel."""
        manifest = self.manifest(name)
        path = self.manifests.joinpath(*name)
        path.unlink()
        for parent in list(path.parents)[:3]:
            if any(parent.iterdir()):
                break
            parent.rmdir()
        self.remove_unused(manifest)

    def remove_unused(self, manifest: Manifest) -> None:
        used = self._used_digests()
        for layer in (*manifest.layers, manifest.config):
            if layer.digest not in used:
                self.blob_path(layer.digest).unlink(missing_ok=True)

    def is_used(self, digest: str) -> bool:
        return digest in self._used_digests()

    def _used_digests(self) -> set[str]:
        used = set()
        for name in self.names():
            manifest = self.manifest(name)
            used |= {layer.digest for layer in (*manifest.layers, manifest.config)}
        return used

    # ---- models

    def load(self, name: ModelName) -> StoredModel:
        """Read a model. The last model layer wins, every adapter layer counts. Raises UnknownModel."""
        manifest = self.manifest(name)
        config = json.loads(self.blob_path(manifest.config.digest).read_text())
        model = StoredModel(name, manifest, config, Path())
        for layer in manifest.layers:
            path = self.blob_path(layer.digest)
            if layer.media_type == MODEL:
                model.model_path, model.parent_model = path, layer.source
            elif layer.media_type == ADAPTER:
                model.adapter_paths.append(path)
            elif layer.media_type == TEMPLATE:
                model.template = GoTemplate(path.read_text())
            elif layer.media_type == SYSTEM:
                model.system = path.read_text()
            elif layer.media_type == PARAMS:
                model.options = json.loads(path.read_text())
            elif layer.media_type == MESSAGES:
                model.messages = json.loads(path.read_text())
            elif layer.media_type == LICENSE:
                model.licenses.append(path.read_text())
        return model

    def list_models(self) -> list[dict[str, Any]]:
        """The entries of /api/tags: newest second first, then by name."""
        entries = []
        for name in sorted(self.names(), key=lambda name: name.short):
            model = self.load(name)
            kv, architecture = model.header.kv, model.header.architecture
            details = dict(model.details)
            for key in ("context_length", "embedding_length"):
                if value := kv.get(f"{architecture}.{key}"):
                    details[key] = value
            entries.append(
                {
                    "name": name.short,
                    "model": name.short,
                    "modified_at": timestamp(model.manifest.modified_ns),
                    "size": model.manifest.size,
                    "digest": model.manifest.digest,
                    "details": details,
                    "capabilities": model.capabilities,
                }
            )
        return sorted(entries, key=lambda entry: str(entry["modified_at"])[:19], reverse=True)

    def show(self, name: ModelName, *, verbose: bool, system: str, options: dict[str, Any]) -> dict[str, Any]:
        """The answer of /api/show. Raises UnknownModel."""
        model = self.load(name)
        model.system = system or model.system
        parameters = [
            f"{key:<30} {format_option(item, quote=True)}"
            for key, value in model.options.items()
            for item in (value if isinstance(value, list) else [value])
        ]
        model.options = {**model.options, **options}
        info = {
            key: value if verbose or not isinstance(value, list) else None
            for key, value in sorted(model.header.kv.items())
            if key not in ("general.name", "tokenizer.chat_template")
        }
        jinja = str(model.header.kv.get("tokenizer.chat_template", ""))
        answer = {
            "license": "\n".join(model.licenses),
            "modelfile": _modelfile(model),
            "parameters": "\n".join(parameters),
            "template": model.template.source if model.template else jinja or "{{ .Prompt }}",
            "system": model.system,
            "details": model.details,
            "messages": model.messages,
            "model_info": info,
            "tensors": [tensor._asdict() for tensor in model.header.tensors],
            "capabilities": model.capabilities,
            "modified_at": timestamp(model.manifest.modified_ns),
        }
        return {key: value for key, value in answer.items() if value or key == "model_info"}


def is_gguf_blob(path: Path) -> bool:
    return path.is_file() and has_gguf_magic(path)


def human_number(count: int) -> str:
    """134515008 → `134.52M`; `format.HumanNumber`."""
    if count >= 10**9:
        return f"{count / 1e9:.0f}B" if count % 10**9 == 0 else f"{count / 1e9:.1f}B"
    if count >= 10**6:
        return f"{count / 1e6:.0f}M" if count % 10**6 == 0 else f"{count / 1e6:.2f}M"
    return f"{count / 1e3:.0f}K" if count >= 1000 else str(count)


def _modelfile(model: StoredModel) -> str:
    lines = [
        '# Modelfile generated by "ollama show"',
        "# To build a new Modelfile based on this, replace FROM with:",
        f"# FROM {model.name.short}",
        "",
        f"FROM {model.model_path}",
        *(f"ADAPTER {path}" for path in model.adapter_paths),
        f"TEMPLATE {_quote(model.template.source if model.template else '{{ .Prompt }}')}",
    ]
    if model.system:
        lines.append(f"SYSTEM {_quote(model.system)}")
    for key, value in model.options.items():
        for item in value if isinstance(value, list) else [value]:
            lines.append(f"PARAMETER {key} {_quote(format_option(item, quote=False))}")
    lines += [f"LICENSE {_quote(text)}" for text in model.licenses]
    lines += [f"MESSAGE {message['role']} {_quote(message['content'])}" for message in model.messages]
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    if "\n" in text or text.startswith(" ") or text.endswith(" "):
        return f'"""{text}"""' if '"' in text else f'"{text}"'
    return text
