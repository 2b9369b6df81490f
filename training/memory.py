"""What a training needs in memory, by part, before anything is loaded; and whether a device has it.

Pure arithmetic on the base model's dimensions and the preset: `python -m training.memory` prints the table
of docs/gpu.md. The activation formula counts what the backward pass keeps, layer by layer, as Korthikanti
et al. 2022 (arXiv 2205.05198, §4.1) do, for our layers: see `_layer_bytes_per_token`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from training.config import TrainConfig
from training.errors import NotEnoughMemory
from training.precision import settle_precision

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Per weight: 4 bits, an 8-bit constant per 64 weights, a 32-bit one per 256 of those (double quantisation:
Dettmers et al. 2023, arXiv 2305.14314, §3)."""
LOGITS_COPIES = 3
"""Tensors of (chunk, vocabulary) that training/loss.py holds at once: logits, probabilities, a product."""
LOGITS_CHUNK_TOKENS = 128
"""`training.loss.CHUNK_TOKENS`, which cannot be imported without torch; a test compares them."""
NORM_BYTES = 4 + 4
"""Per hidden number: the two RMS norms of a layer keep their input in float32."""
MLP_TENSORS = 4
"""gate, silu(gate), up and their product, which down_proj reads; each of the MLP's width."""
FIXED_BYTES = {
    # Python with torch, transformers, peft and their libraries, resident: 0.46–0.55 GB measured on Linux.
    "cpu": 600_000_000,
    # CUDA context and cuBLAS workspaces: 0.3–0.6 GB a GPU by NVIDIA's and PyTorch's documentation; not
    # measured here (tests/gpu/test_cuda.py does).
    "cuda": 800_000_000,
}
SLACK = {
    # What the C library keeps of freed temporaries, and gradients in flight.
    "cpu": 1.15,
    # PyTorch's caching allocator rounds blocks up and leaves holes between rows of changing length.
    "cuda": 1.10,
}
"""What activations and the logits chunk are multiplied by."""
HOLES = 2
"""Tensors as wide as the MLP that glibc leaves free beside each layer's input and cannot give to the next:
2.3 to 2.4 GB measured at 1,632 tokens in float32, 1.5 GB with tcmalloc."""
SHORTEST_TOKENS = 256
"""No shorter sequence is proposed: a mail and its prompt would not fit."""


class Dimensions(BaseModel):
    """The sizes of a Llama-like decoder, as in its config.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    intermediate: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_width: int = Field(ge=1)
    vocabulary: int = Field(ge=1)
    tied: bool
    """Input and output embeddings are one matrix."""

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Return inputs and outputs of each linear layer of a block, by its name."""
        query, key = self.heads * self.head_width, self.kv_heads * self.head_width
        return {
            "q_proj": (self.hidden, query),
            "k_proj": (self.hidden, key),
            "v_proj": (self.hidden, key),
            "o_proj": (query, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def linear_parameters(self) -> int:
        """Weights of all blocks' linear layers: what NF4 quantises."""
        return self.layers * sum(i * o for i, o in self.linear_shapes().values())

    @property
    def other_parameters(self) -> int:
        """Embeddings, output matrix and norms: never quantised."""
        matrices = 1 if self.tied else 2
        return matrices * self.vocabulary * self.hidden + (2 * self.layers + 1) * self.hidden

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.other_parameters


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by part, on all devices together."""

    weights: int
    adapter: int
    """LoRA weights, their gradients, the float32 master, the optimiser's state, what an early stop keeps."""
    activations: int
    """What the backward pass keeps, for the largest batch."""
    logits: int
    fixed: int
    gradient_checkpointing: bool

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations + self.logits + self.fixed

    @property
    def beside_weights(self) -> int:
        return self.total - self.weights


def adapter_parameters(dimensions: Dimensions, config: TrainConfig) -> int:
    """Return the numbers in an adapter: rank × (inputs + outputs) for each target (Hu et al. 2021, §4.1)."""
    shapes = dimensions.linear_shapes()
    return (
        dimensions.layers * config.lora.rank * sum(sum(shapes[name]) for name in config.lora.target_modules)
    )


def plan_memory(
    dimensions: Dimensions,
    config: TrainConfig,
    *,
    kind: str = "cuda",
    devices: int = 1,
    longest_tokens: int | None = None,
) -> MemoryPlan:
    """Return what one training needs on `devices` devices of a kind (`cpu` or `cuda`).

    `longest_tokens` is the longest example, prompt and reply; unknown, it is the most that the preset allows.
    `gradient_checkpointing: auto` counts as off here; `fit_memory` decides it.
    """
    longest = min(config.max_seq_tokens, longest_tokens or config.max_seq_tokens)
    tokens = max(config.batch_tokens, longest)  # an example longer than the budget is a batch of its own
    number = 2 if settle_precision(config, kind).precision == "bf16" else 4
    linear = NF4_BYTES if config.quantise == "nf4" else number
    weights = dimensions.linear_parameters * linear + dimensions.other_parameters * number
    layer = tokens * _layer_bytes_per_token(dimensions, config, kind, number, longest)
    recomputes = config.gradient_checkpointing is True
    if recomputes:
        # Each layer keeps its input only, and one layer at a time keeps everything while it is done again.
        kept = dimensions.layers * tokens * dimensions.hidden * number + layer
        if kind == "cpu":
            kept += dimensions.layers * tokens * HOLES * dimensions.intermediate * number
    else:
        kept = dimensions.layers * layer
    if config.quantise == "nf4":
        # bitsandbytes dequantises one matrix at a time; the largest is the MLP's.
        kept += dimensions.hidden * dimensions.intermediate * number
    logits = LOGITS_COPIES * LOGITS_CHUNK_TOKENS * dimensions.vocabulary * number
    return MemoryPlan(
        weights=round(weights),
        adapter=adapter_parameters(dimensions, config) * _bytes_per_adapter_parameter(config, number),
        activations=round(kept * SLACK[kind]),
        logits=round(logits * SLACK[kind]),
        fixed=FIXED_BYTES[kind] * devices,
        gradient_checkpointing=recomputes,
    )


def _layer_bytes_per_token(
    dimensions: Dimensions, config: TrainConfig, kind: str, number: int, longest: int
) -> float:
    """Return what one layer keeps for its backward pass, per token.

    Linear inputs are shared by the layers that read them (q, k, v; gate, up); a dropout mask is as wide and
    as large as the input it is for; each LoRA pair keeps its `rank` numbers. Attention keeps query, key,
    value and output; on CPU also its weights, one per head and earlier token, which fused kernels on CUDA
    compute again (Dao et al. 2022, arXiv 2205.14135).
    """
    shapes = dimensions.linear_shapes()
    query, key = dimensions.heads * dimensions.head_width, dimensions.kv_heads * dimensions.head_width
    inputs = 2 * dimensions.hidden + query  # in front of q k v, of gate up, and of o
    masks = inputs + dimensions.intermediate if config.lora.dropout else 0
    attention = 2 * query + 2 * key
    mlp = MLP_TENSORS * dimensions.intermediate
    lora = config.lora.rank * len([name for name in config.lora.target_modules if name in shapes])
    numbers = float(inputs + masks + attention + mlp + lora)
    if kind == "cpu":
        numbers += dimensions.heads * longest
    return numbers * number + NORM_BYTES * dimensions.hidden


def _bytes_per_adapter_parameter(config: TrainConfig, number: int) -> int:
    """Working weight and its gradient; in float32 master and its gradient; AdamW's two moments; with an early
    stop, in float32, the best weights so far and the mean of the steps.

    Moments are float32, or one byte each with 8-bit AdamW (Dettmers et al. 2021, arXiv 2110.02861).
    """
    moments = 2 if config.optimiser == "paged_adamw_8bit" else 8
    kept = 4 + 4 * (config.average_from is not None) if config.validation_fraction else 0
    return number + number + 4 + 4 + moments + kept


def fit_memory(
    dimensions: Dimensions,
    config: TrainConfig,
    free_bytes: Sequence[int],
    *,
    kind: str,
    base_model: str,
) -> MemoryPlan:
    """Return the plan that fits what the devices have free, one number a device.

    `gradient_checkpointing: auto` is switched on when the training does not fit without. Raises
    NotEnoughMemory with needed and free gigabytes, and what would fit.
    """
    plans = [
        plan_memory(dimensions, choice, kind=kind, devices=len(free_bytes)) for choice in _choices(config)
    ]
    free = sum(free_bytes)
    for plan in plans:
        if plan.total <= free:
            return plan
    needed = plans[-1].total
    where = (
        "this machine" if kind == "cpu" else f"the {len(free_bytes)} GPUs" if free_bytes[1:] else "the GPU"
    )
    proposal = _what_would_fit(dimensions, config, free, kind, len(free_bytes))
    raise NotEnoughMemory(
        f"Training on {base_model} needs {needed / 1e9:.1f} GB and {where} has {free / 1e9:.1f} GB free. "
        + (proposal or "No setting makes it fit: choose a smaller base model or a larger machine."),
        needed_bytes=needed,
        free_bytes=free,
    )


def _choices(config: TrainConfig) -> Iterator[TrainConfig]:
    if config.gradient_checkpointing != "auto":
        yield config
    else:
        yield config.model_copy(update={"gradient_checkpointing": False})
        yield config.model_copy(update={"gradient_checkpointing": True})


def _what_would_fit(
    dimensions: Dimensions, config: TrainConfig, free: int, kind: str, devices: int
) -> str | None:
    """Return the mildest change of the preset that fits, as a sentence, or None."""
    changes: list[dict[str, object]] = [{"gradient_checkpointing": True}]
    if config.quantise != "nf4":
        changes.append({"gradient_checkpointing": True, "quantise": "nf4"})
    tokens = config.max_seq_tokens
    thriftiest = changes[-1] | ({"optimiser": "paged_adamw_8bit"} if kind == "cuda" else {})
    if thriftiest != changes[-1]:
        changes.append(thriftiest)
    while tokens > SHORTEST_TOKENS:
        tokens = max(SHORTEST_TOKENS, tokens // 2)
        changes.append(
            thriftiest | {"max_seq_tokens": tokens, "batch_tokens": min(config.batch_tokens, tokens)}
        )
    for change in changes:
        plan = plan_memory(dimensions, config.model_copy(update=change), kind=kind, devices=devices)
        if plan.total <= free:
            new = {name: value for name, value in change.items() if getattr(config, name) != value}
            settings = ", ".join(f"{name}: {str(value).lower()}" for name, value in new.items())
            return f"With {settings} in the preset it needs {plan.total / 1e9:.1f} GB and would fit."
    return None


def choose_gpus(plan: MemoryPlan, free_bytes: Sequence[int]) -> list[int]:
    """Return the numbers of the fewest GPUs that hold the plan, those with the most free memory first.

    One GPU where one is enough: over several the layers run one after another, so that more of them add
    memory and no speed. `plan.fixed` is for all of `free_bytes`.
    """
    each_fixed = plan.fixed // len(free_bytes)
    order = sorted(range(len(free_bytes)), key=lambda n: -free_bytes[n])
    for count in range(1, len(order) + 1):
        room = sum(free_bytes[n] - each_fixed for n in order[:count])
        if plan.total - plan.fixed <= room:
            return sorted(order[:count])
    return sorted(order)


def weights_per_gpu(plan: MemoryPlan, free_bytes: Sequence[int], gpus: Sequence[int]) -> dict[int, int]:
    """Return how many bytes of weights each of `gpus` may hold, so that the rest of the plan has room.

    Activations live where their layers do. The first GPU also holds the master weights and the optimiser's
    state, the last one the output matrix's logits. transformers' `max_memory` takes this.
    """
    each_fixed = plan.fixed // len(free_bytes)
    room = {n: free_bytes[n] - each_fixed - plan.activations // len(gpus) for n in gpus}
    room[gpus[0]] -= plan.adapter
    room[gpus[-1]] -= plan.logits
    return {n: max(0, left) for n, left in room.items()}


def memory_table() -> str:
    """Return the Markdown table of docs/gpu.md: gigabytes per base model, precision and sequence length."""
    from training.base_models import load_base_models

    lines = [
        "| base model | weights | adapter | tokens | total | with checkpointing |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for base in load_base_models().values():
        for quantise in ("none", "nf4"):
            for tokens in (512, 1024, 2048, 4096):
                config = TrainConfig.model_validate(
                    {
                        "quantise": quantise,
                        "max_seq_tokens": tokens,
                        "batch_tokens": tokens,
                        "gradient_checkpointing": False,
                    }
                )
                plain = plan_memory(base.dimensions, config)
                thrifty = plan_memory(
                    base.dimensions, config.model_copy(update={"gradient_checkpointing": True})
                )
                lines.append(
                    f"| {base.id}, {'bf16' if quantise == 'none' else 'NF4'} | {plain.weights / 1e9:.1f} "
                    f"| {plain.adapter / 1e9:.1f} | {tokens:,} | {plain.total / 1e9:.1f} "
                    f"| {thrifty.total / 1e9:.1f} |"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    print(memory_table())
