"""A base model in memory: loaded once, lent to one adapter after another, given back as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from training import attention, base_models, cuda_attention, device
from training.architectures import refuse_unproven
from training.config import TrainConfig
from training.errors import ConfigError
from training.memory import MemoryPlan, choose_gpus, fit_memory, weights_per_gpu
from training.precision import settle_precision
from training.speed_up import restore_forwards

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


_ATTENTIONS = {
    "ragged": attention.register,
    "sdpa": cuda_attention.register_sdpa,
    "varlen": cuda_attention.register_varlen,
}


@dataclass(frozen=True)
class LoadedBase:
    """A base model in memory, ready for adapters."""

    info: base_models.BaseModel
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    device: torch.device
    """Where the token ids go: the device of the input embedding."""
    free_bytes: tuple[int, ...] = ()
    """What each device had free before the weights were loaded; empty: not known, and nothing is refused."""
    trainers: int = 1
    """Processes that share the device, this one among them: each is charged for its part."""

    @property
    def device_name(self) -> str:
        """The device as it is shown and as measured rates are kept by."""
        return device.device_name(self.device, len({p.device for p in self.model.parameters()}))

    def plan(self, config: TrainConfig) -> MemoryPlan | None:
        """Return how a training fits beside what was free at the start, or None when that is not known.

        Raises NotEnoughMemory.
        """
        return plan_on(self.info, config, self.device, self.free_bytes) if self.free_bytes else None

    def recomputes(self, config: TrainConfig) -> bool:
        """Tell whether activations are computed again in the backward pass; `auto`: when memory asks for it.

        Raises NotEnoughMemory.
        """
        plan = self.plan(config)
        return config.gradient_checkpointing is True if plan is None else plan.gradient_checkpointing


def plan_on(
    info: base_models.BaseModel, config: TrainConfig, on: torch.device, free_bytes: Sequence[int]
) -> MemoryPlan:
    """Return the plan of one training on devices with `free_bytes`. Raises NotEnoughMemory."""
    return fit_memory(info.dimensions, config, free_bytes, kind=on.type, base_model=info.id)


def load_base(info: base_models.BaseModel, cache: Path, config: TrainConfig) -> LoadedBase:
    """Load the base's weights, frozen, on the best device there is.

    Side effect: the first use of a GGUF base writes its weights into `cache`. Raises NotEnoughMemory before
    anything is read when a training with `config` cannot fit, and ConfigError when the
    weights cannot be had, or when the training would not be exact for them (training.architectures).
    """
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    on = device.best_device()
    config = settle_precision(config, on.type)
    free = device.free_bytes(on)
    plan = plan_on(info, config, on, free)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    options: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": _ATTENTIONS[device.attention_here(on, config.precision)](),
    }
    if config.quantise == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if on.type == "cuda":
        options |= _places(plan, free)
    try:
        weights = base_models.weights_path(info, cache)
        model_config = AutoConfig.from_pretrained(weights, revision=info.revision)
        refuse_unproven(model_config, config.max_seq_tokens)
        model = AutoModelForCausalLM.from_pretrained(weights, revision=info.revision, **options)
        tokenizer = base_models.load_tokenizer(info, cache)
    except OSError as exc:
        raise ConfigError(
            f"The weights of {info.id} cannot be loaded ({type(exc).__name__}). Check the disk, the network "
            "and, for a gated model, HF_TOKEN; then retry the job."
        ) from exc
    model.config.use_cache = False
    model.requires_grad_(False)
    _refuse_offloading(model)
    return LoadedBase(info, model, tokenizer, model.get_input_embeddings().weight.device, tuple(free))


def _places(plan: MemoryPlan, free: Sequence[int]) -> dict[str, Any]:
    """Return what `from_pretrained` needs to put the layers on the fewest GPUs that hold them."""
    gpus = choose_gpus(plan, free)
    if len(gpus) == 1:
        return {"device_map": {"": gpus[0]}}
    return {"device_map": "auto", "max_memory": weights_per_gpu(plan, free, gpus)}


def _refuse_offloading(model: PreTrainedModel) -> None:
    """Raise ConfigError when layers were left on CPU or disk beside GPUs: steps would take minutes."""
    places = set((getattr(model, "hf_device_map", None) or {}).values())
    if places & {"cpu", "disk"} and places - {"cpu", "disk"}:
        raise ConfigError(
            "The GPUs could not take all layers of the base model: their free memory is split too unevenly. "
            "Free the GPU that others use, or choose quantise: nf4."
        )


def restore_base(model: PeftModel, base: LoadedBase) -> None:
    """Take the adapter off, so that the base is what it was for the next job of the cohort."""
    model.unload()  # type: ignore[no-untyped-call, operator]
    restore_forwards(base.model)
    if base.model.is_activation_checkpointing:
        base.model.activation_checkpointing_disable()
        base.model.disable_input_require_grads()
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        if attribute in base.model.__dict__:
            delattr(base.model, attribute)
    base.model.requires_grad_(False)
    base.model.eval()
