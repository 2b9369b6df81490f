"""POST /api/create: what is checked, in which order it is reported, and what is stored.

Follows `server/create.go` of Ollama 0.33.0-rc2; where the newer server (the change that drops the
safetensors import) differs, `newer` says so.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from tests.ollama_server.gguf_file import BadGguf, read_header
from tests.ollama_server.go_json import encode
from tests.ollama_server.go_template import CHATML_STOPS, BadTemplate, GoTemplate, detect_template
from tests.ollama_server.model_store import (
    ADAPTER,
    CONFIG,
    LICENSE,
    MESSAGES,
    MODEL,
    PARAMS,
    SYSTEM,
    TEMPLATE,
    InvalidDigest,
    Layer,
    ModelStore,
    UnknownModel,
    human_number,
    is_gguf_blob,
)
from tests.ollama_server.names import ModelName, parse_name, split_source
from tests.ollama_server.peft_import import BadPeft, convert_peft

FIELDS = {
    "model": "string",
    "name": "string",
    "from": "string",
    "files": "map[string]string",
    "adapters": "map[string]string",
    "template": "string",
    "system": "string",
    "license": "interface {}",
    "parameters": "map[string]interface {}",
    "messages": "[]api.Message",
    "quantize": "string",
    "quantization": "string",
    "renderer": "string",
    "parser": "string",
    "remote_host": "string",
    "stream": "bool",
}
NOT_COVERED = ("renderer", "parser", "remote_host")
NEWER_QUANTIZE_ERROR = (
    "create-time quantization is only supported for safetensors imports; quantize GGUF models with llama.cpp "
    "tools before importing"
)
_UNQUANTISED = ("F16", "BF16", "F32")


class CreateError(Exception):
    """Ends a create; `status` is the code when nothing was streamed before."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class NotCoveredByDouble(Exception):
    """Ollama can do this, the double cannot; answered with 501 so that nobody mistakes it for Ollama."""


def pull_error(name: ModelName) -> str:
    """The text of a pull without network: the double never has any."""
    host, dns = name.host, "127.0.0.53"
    return (
        f'pull model manifest: Get "https://{host}/v2/{name.namespace}/{name.model}/manifests/{name.tag}": '
        f"dial tcp: lookup {host} on {dns}:53: dial udp {dns}:53: connect: network is unreachable"
    )


def refuse_early(request: dict[str, Any], *, newer: bool) -> str | None:
    """Return the error of the checks that run before anything is streamed, or None."""
    for key in ("files", "adapters"):
        for name, digest in (request.get(key) or {}).items():
            if key == "files" and (name.startswith("/") or ".." in name.split("/") or not name):
                return "file path must be relative"
            if not digest:
                return "invalid digest format"
    if not parse_name(request.get("model") or request.get("name") or "").is_valid:
        return "invalid model name"
    if newer and (request.get("quantize") or request.get("quantization")):
        return NEWER_QUANTIZE_ERROR
    return None


def create_model(
    store: ModelStore, request: dict[str, Any], name: ModelName, *, newer: bool
) -> Iterator[str]:
    """Yield the status lines of one create and store the model.

    Raises:
        CreateError: the request is refused; lines already yielded stay sent.
        NotCoveredByDouble: the double cannot follow Ollama here.
    """
    for key in NOT_COVERED:
        if request.get(key):
            raise NotCoveredByDouble(f"create with {key!r}")
    try:
        old = store.manifest(name)
    except UnknownModel:
        old = None
    layers, fresh = yield from _base_layers(store, request, newer=newer)
    if "adapters" in request:
        adapters = yield from _layers_of_files(store, request["adapters"], layers, adapter=True, newer=newer)
        layers += adapters
        fresh |= {layer.digest for layer in adapters}
    config, layers = yield from _inspect_models(store, request, layers, fresh, newer=newer)
    layers = _apply_settings(store, request, layers)
    config_layer = store.add_blob(BytesIO(encode(config) + b"\n"), CONFIG)
    for layer in layers:
        if layer.status:
            yield layer.status
    yield "writing manifest"
    store.write_manifest(name, config_layer, layers)
    if old is not None:
        store.remove_unused(old)
    yield "success"


def preload(store: ModelStore, name: ModelName, gguf_file: Path, digest: str) -> None:
    """Store `gguf_file` as the model `name` as if it had been pulled: its own digest, no parent."""
    store.link_blob(gguf_file, digest)
    layers = _with_template(store, [store.layer_of_blob(digest, MODEL, "")])
    config = {"model_format": "", "model_family": "", "model_families": []}
    _describe(config, store.blob_path(digest))
    store.write_manifest(name, store.add_blob(BytesIO(encode(config) + b"\n"), CONFIG), layers)


def _base_layers(
    store: ModelStore, request: dict[str, Any], *, newer: bool
) -> Generator[str, None, tuple[list[Layer], set[str]]]:
    """Return the base's layers and the digests of model files that came with this request."""
    if request.get("from"):
        base, source = split_source(request["from"])
        base_name = parse_name(base)
        if not base or not base_name.is_valid:
            raise CreateError("invalid model name")
        if source == "cloud":
            raise NotCoveredByDouble("create from a cloud model")
        try:
            manifest = store.manifest(base_name)
        except UnknownModel as exc:
            yield "pulling manifest"
            raise CreateError(pull_error(base_name), 500) from exc
        layers = [
            store.layer_of_blob(layer.digest, layer.media_type, base_name.short) for layer in manifest.layers
        ]
        return layers, set()
    if request.get("files") is not None:
        try:
            layers = yield from _layers_of_files(store, request["files"], [], adapter=False, newer=newer)
        except CreateError as exc:
            known = ("no files provided to convert", "supplied file was not in GGUF format", "unknown type")
            raise CreateError(str(exc), 400 if str(exc) in known else 500) from exc
        return layers, {layer.digest for layer in layers if layer.media_type == MODEL}
    raise CreateError("neither 'from' or 'files' was specified")


def _layers_of_files(
    store: ModelStore, files: dict[str, str], base: list[Layer], *, adapter: bool, newer: bool
) -> Generator[str, None, list[Layer]]:
    kind = _detect_kind(store, files)
    if kind == "safetensors":
        if newer:
            raise CreateError("supplied file was not in GGUF format")
        if not adapter:
            raise NotCoveredByDouble("import of a safetensors model")
        return (yield from _import_peft(store, files, base))
    if kind != "gguf":
        raise CreateError("unknown type")
    if len(files) > 1 and adapter:
        raise CreateError("only one adapter is currently supported")
    layers: list[Layer] = []
    for file_name in sorted(files):
        yield "parsing GGUF"
        try:
            path = store.blob_path(files[file_name])
        except InvalidDigest as exc:
            raise CreateError(str(exc)) from exc
        if not path.exists():
            raise CreateError(f"open {path}: no such file or directory")
        if not is_gguf_blob(path):
            raise CreateError("supplied file was not in GGUF format")
        try:
            header = read_header(path)
        except BadGguf as exc:
            raise CreateError(str(exc)) from exc
        media_type = ADAPTER if header.kind == "adapter" else MODEL
        layers.append(store.layer_of_blob(files[file_name], media_type, file_name))
    return _with_template(store, layers)


def _detect_kind(store: ModelStore, files: dict[str, str]) -> str:
    """The first key decides; a name with neither ending is judged by its first four bytes."""
    for file_name, digest in files.items():
        for kind in ("safetensors", "gguf"):
            if file_name.endswith(f".{kind}"):
                return kind
        try:
            path = store.blob_path(digest)
        except InvalidDigest:
            return ""
        if not path.is_file() or path.stat().st_size == 0:
            return ""
        if is_gguf_blob(path):
            return "gguf"
    return ""


def _import_peft(
    store: ModelStore, files: dict[str, str], base: list[Layer]
) -> Generator[str, None, list[Layer]]:
    model = next((layer for layer in base if layer.media_type == MODEL), None)
    if model is None:
        raise CreateError("no base model was found")
    try:
        paths = {file_name: store.blob_path(digest) for file_name, digest in files.items()}
    except InvalidDigest as exc:
        raise CreateError(str(exc)) from exc
    yield "converting adapter"
    with tempfile.TemporaryDirectory(dir=store.folder) as folder:
        out = Path(folder) / "adapter.gguf"
        try:
            convert_peft(paths, read_header(store.blob_path(model.digest)).kv, out)
        except BadPeft as exc:
            raise CreateError(str(exc)) from exc
        with out.open("rb") as file:
            return [store.add_blob(file, ADAPTER)]


def _with_template(store: ModelStore, layers: list[Layer]) -> list[Layer]:
    """Append the built-in template (and its stops) that matches a model's own jinja template."""
    result = list(layers)
    for layer in layers:
        jinja = read_header(store.blob_path(layer.digest)).kv.get("tokenizer.chat_template")
        template = detect_template(str(jinja)) if jinja else None
        if template:
            added = store.add_blob(BytesIO(template.encode()), TEMPLATE)
            result.append(replace(added, status="using autodetected template chatml"))
            stops = encode({"stop": list(CHATML_STOPS)}) + b"\n"
            result.append(store.add_blob(BytesIO(stops), PARAMS))
    return result


def _inspect_models(
    store: ModelStore, request: dict[str, Any], layers: list[Layer], fresh: set[str], *, newer: bool
) -> Generator[str, None, tuple[dict[str, Any], list[Layer]]]:
    """Return the config and the layers, a fresh model file being replaced by its checked copy."""
    config: dict[str, Any] = {"model_format": "", "model_family": "", "model_families": []}
    quantize = str(request.get("quantize") or request.get("quantization") or "").upper()
    result = []
    for layer in layers:
        if layer.media_type != MODEL:
            result.append(layer)
            continue
        if quantize:
            if read_header(store.blob_path(layer.digest)).file_type not in _UNQUANTISED:
                raise CreateError("quantization is only supported for F16, BF16 and F32 models", 500)
            raise NotCoveredByDouble("quantisation of an unquantised base")
        if layer.digest in fresh and not newer:
            if not _llama_cpp_would_load(store.blob_path(layer.digest)):
                raise CreateError(
                    "failed to validate GGUF with llama-quantize without compatibility patches: "
                    "llama-quantize failed: exit status 1",
                    500,
                )
            layer = store.copy_with_other_digest(layer.digest)
            yield "verifying conversion"
        _describe(config, store.blob_path(layer.digest))
        result.append(layer)
    return config, result


def _llama_cpp_would_load(path: Path) -> bool:
    header = read_header(path)
    needed = {f"{header.architecture}.{key}" for key in ("context_length", "block_count", "embedding_length")}
    has_embedding = any(tensor.name == "token_embd.weight" for tensor in header.tensors)
    return needed <= header.kv.keys() and has_embedding


def _describe(config: dict[str, Any], path: Path) -> None:
    """Fill in the config of a model layer: the first one names the model, each adds its family."""
    header = read_header(path)
    config["model_format"] = config["model_format"] or "gguf"
    config["model_family"] = config["model_family"] or header.architecture
    config["model_families"].append(header.architecture)
    config.setdefault("model_type", human_number(header.parameter_count))
    config.setdefault("file_type", header.file_type)
    config.setdefault("architecture", "amd64")
    config.setdefault("os", "linux")


def _apply_settings(store: ModelStore, request: dict[str, Any], layers: list[Layer]) -> list[Layer]:
    """Replace or append template, system, licence, parameters and messages; inherited ones stay."""
    if request.get("template"):
        try:
            GoTemplate(request["template"])
        except BadTemplate as exc:
            raise CreateError(f"template error: {exc}") from exc
        layers = _replace(store, layers, TEMPLATE, request["template"].encode())
    if request.get("system"):
        layers = _replace(store, layers, SYSTEM, request["system"].encode())
    licenses = request.get("license") or []
    for text in [licenses] if isinstance(licenses, str) else licenses:
        layers = [*layers, store.add_blob(BytesIO(str(text).encode()), LICENSE)]
    parameters = dict(request.get("parameters") or {})
    for layer in layers:
        if layer.media_type == PARAMS:
            inherited = json.loads(store.blob_path(layer.digest).read_bytes())
            parameters = {**inherited, **parameters}
    if parameters:
        # Go writes a map's keys in order, and an unknown parameter is stored like any other.
        ordered = {key: parameters[key] for key in sorted(parameters)}
        layers = _replace(store, layers, PARAMS, encode(ordered) + b"\n")
    if request.get("messages"):
        layers = _replace(store, layers, MESSAGES, encode(request["messages"]) + b"\n")
    return layers


def _replace(store: ModelStore, layers: list[Layer], media_type: str, data: bytes) -> list[Layer]:
    kept = [layer for layer in layers if layer.media_type != media_type]
    for layer in layers:
        # The blob of the replaced layer goes at once unless a manifest names it, so the same text may be
        # reported as a new layer.
        if layer.media_type == media_type and not store.is_used(layer.digest):
            store.blob_path(layer.digest).unlink(missing_ok=True)
    return [*kept, store.add_blob(BytesIO(data), media_type)]
