"""A base model in memory: loaded once, lent to one adapter after another, given back as it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from training import attention, base_models
from training.config import TrainConfig
from training.errors import ConfigError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class LoadedBase:
    """A base model in memory, ready for adapters."""

    info: base_models.BaseModel
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    device: torch.device


def load_base(info: base_models.BaseModel, cache: Path, config: TrainConfig) -> LoadedBase:
    """Load the base's weights, frozen, on the best device there is.

    Side effect: the first use of a GGUF base writes its weights into `cache`. Raises ConfigError when the
    weights cannot be had.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    options: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": "sdpa" if device.type == "cuda" else attention.register(),
    }
    if config.quantise == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if device.type == "cuda":
        options["device_map"] = "auto"
    try:
        weights = base_models.weights_path(info, cache)
        model = AutoModelForCausalLM.from_pretrained(weights, revision=info.revision, **options)
        tokenizer = base_models.load_tokenizer(info, cache)
    except OSError as exc:
        raise ConfigError(
            f"The weights of {info.id} cannot be loaded ({type(exc).__name__}). Check the disk, the network "
            "and, for a gated model, HF_TOKEN; then retry the job."
        ) from exc
    model.config.use_cache = False
    model.requires_grad_(False)
    return LoadedBase(info, model, tokenizer, device)


def restore_base(model: PeftModel, base: LoadedBase) -> None:
    """Take the adapter off, so that the base is what it was for the next job of the cohort."""
    model.unload()  # type: ignore[no-untyped-call, operator]
    if base.model.is_activation_checkpointing:
        base.model.activation_checkpointing_disable()
        base.model.disable_input_require_grads()
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        if attribute in base.model.__dict__:
            delattr(base.model, attribute)
    base.model.requires_grad_(False)
    base.model.eval()


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory this process (CPU) or its GPUs (CUDA) ever held, in bytes."""
    if device.type == "cuda":
        return sum(torch.cuda.max_memory_allocated(n) for n in range(torch.cuda.device_count()))
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_name(device: torch.device) -> str:
    """Return the GPU's product name, or `cpu (<n> threads)`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)"
