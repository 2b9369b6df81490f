"""What a GPU changes in training, where its parts run on CPU: grouped vectors, 4 bits, late losses."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model

from tests.bases import tiny_base, tiny_examples
from training import cuda_attention, run
from training.checkpoint import CHECKPOINT_FILE
from training.config import LoraConfig, TrainConfig
from training.errors import NotEnoughMemory, TrainingDiverged
from training.flat_parameters import FlatParameters
from training.loaded_base import LoadedBase, restore_base
from training.lora import train_adapter
from training.optimiser import make_optimiser
from training.step_losses import StepLosses

TINY = TrainConfig(
    precision="fp32",
    epochs=3,
    batch_tokens=64,
    learning_rate=5e-3,
    checkpoint_every_s=1e-9,
    lora=LoraConfig(rank=4, alpha=8, dropout=0.2),
)


@pytest.fixture
def base() -> LoadedBase:
    return tiny_base()


def weights_of(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


# ---- several devices -------------------------------------------------------------------------------


def train_flat(group_of: Any, precision: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Do three steps with made-up gradients; return the master and the working weights, in model order."""
    base = tiny_base(precision=precision)
    torch.manual_seed(1)
    model = get_peft_model(
        base.model,
        PeftLoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
        autocast_adapter_dtype=False,
    )
    try:
        options = {} if group_of is None else {"group_of": group_of(model)}
        flat = FlatParameters(model, **options)
        optimiser = make_optimiser(flat.master, TINY)
        parameters = [p for p in model.parameters() if p.requires_grad]
        for step in range(3):
            torch.manual_seed(step)
            for parameter in parameters:
                assert parameter.grad is not None
                parameter.grad += torch.randn(parameter.shape).to(parameter.dtype)
            flat.update(optimiser, max_grad_norm=1.0)
            assert all(not p.grad.any() for p in parameters if p.grad is not None)
        return flat.master.detach(), [p.detach().clone() for p in parameters]
    finally:
        restore_base(model, base)


def by_layer(model: torch.nn.Module) -> Any:
    """As device_map does: the first layer here, the rest there."""
    names = {id(p): name for name, p in model.named_parameters()}
    return lambda parameter: "layers.0" in names[id(parameter)]


def alternating(model: torch.nn.Module) -> Any:
    order = {id(p): n % 2 for n, p in enumerate(p for p in model.parameters() if p.requires_grad)}
    return lambda parameter: order[id(parameter)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("group_of", [by_layer, alternating])
def test_parameters_on_two_devices_train_bit_for_bit_as_on_one(group_of: Any, precision: str) -> None:
    master, working = train_flat(None, precision)
    grouped_master, grouped_working = train_flat(group_of, precision)
    assert torch.equal(master, grouped_master)
    assert all(map(torch.equal, working, grouped_working))
    flat = torch.cat([p.reshape(-1) for p in working])
    assert flat.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    assert torch.equal(flat, master.to(flat.dtype))


# ---- attention on CUDA -----------------------------------------------------------------------------


def kernel_double(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest: int,
    longest_key: int,
    *,
    softmax_scale: float,
    causal: bool,
) -> torch.Tensor:
    """flash-attn's varlen function, row by row in plain PyTorch; it is as strict about what it is given."""
    assert bounds.dtype == torch.int32 and torch.equal(bounds, key_bounds) and causal
    assert bounds[0] == 0 and bounds[-1] == len(q) and longest == int(bounds.diff().max()) == longest_key
    rows = []
    for start, stop in itertools.pairwise(bounds.tolist()):
        row = (x[start:stop].transpose(0, 1) for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(
            *row, is_causal=True, scale=softmax_scale, enable_gqa=True
        )
        rows.append(out.transpose(0, 1))
    return torch.cat(rows)


@pytest.mark.parametrize("name", [cuda_attention.SDPA, cuda_attention.VARLEN])
@pytest.mark.parametrize("recomputed", [False, True])
def test_the_attentions_of_cuda_train_as_the_one_of_cpu(
    name: str, recomputed: bool, base: LoadedBase, tmp_path: Path
) -> None:
    from transformers import AttentionInterface

    config = TINY.model_copy(
        update={
            "lora": LoraConfig(rank=4, alpha=8, dropout=0.0),
            "gradient_checkpointing": recomputed,
            "max_steps": 8,
        }
    )
    expected = train_adapter(config, tiny_examples(), base, tmp_path / "cpu")
    cuda_attention.register_sdpa()
    AttentionInterface.register(cuda_attention.VARLEN, cuda_attention.varlen_attention(kernel_double))
    base.model.set_attn_implementation(name)
    found = train_adapter(config, tiny_examples(), base, tmp_path / "cuda")
    assert base.model.config._attn_implementation == name
    for (_, loss), (_, other) in zip(found.loss_curve, expected.loss_curve, strict=True):
        assert loss == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("name", [cuda_attention.SDPA, cuda_attention.VARLEN])
def test_transformers_asks_no_values_of_positions_on_the_way(
    name: str, base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its check for packed rows reads from the GPU and would wait for it at each forward pass."""
    from transformers import AttentionInterface, masking_utils

    def waits(positions: torch.Tensor) -> None:
        raise AssertionError("this waits for the GPU")

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", waits)
    cuda_attention.register_sdpa()
    AttentionInterface.register(cuda_attention.VARLEN, cuda_attention.varlen_attention(kernel_double))
    base.model.set_attn_implementation(name)
    train_adapter(TINY.model_copy(update={"max_steps": 1}), tiny_examples(), base, tmp_path)


# ---- four bits -------------------------------------------------------------------------------------


def quantised_tiny() -> LoadedBase:
    """Return the tiny base with NF4 linear layers, made as `load_base` makes them."""
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    plain = tiny_base(precision="bf16")
    with TemporaryDirectory() as folder:
        plain.model.save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16,
            attn_implementation=plain.model.config._attn_implementation,
            quantization_config=BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            ),
        )
    model.config.use_cache = False
    model.requires_grad_(False)
    return replace(plain, model=model)


def test_an_adapter_on_a_four_bit_base_learns_in_bf16(tmp_path: Path) -> None:
    base = quantised_tiny()
    kinds = {type(module).__name__ for module in base.model.modules()}
    assert "Linear4bit" in kinds
    config = TINY.model_copy(update={"precision": "bf16", "quantise": "nf4", "learning_rate": 2e-2})
    result = train_adapter(config, tiny_examples(), base, tmp_path)
    losses = [loss for _, loss in result.loss_curve]
    assert len(losses) > 10 and sum(losses[-3:]) / 3 < losses[0] - 0.3
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}


# ---- the optimiser ---------------------------------------------------------------------------------


def test_eight_bit_moments_train_and_resume_to_the_same_adapter(base: LoadedBase, tmp_path: Path) -> None:
    # Smaller vectors than 4,096 keep moments of 32 bits in bitsandbytes: rank 16 makes 12,544 numbers.
    config = TINY.model_copy(
        update={"optimiser": "paged_adamw_8bit", "lora": LoraConfig(rank=16, alpha=32, dropout=0.2)}
    )
    whole = train_adapter(config, tiny_examples(), base, tmp_path / "whole")

    def die(progress: Any) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_adapter(config, tiny_examples(), base, tmp_path / "torn", on_progress=die)
    saved = torch.load(tmp_path / "torn" / "checkpoint" / CHECKPOINT_FILE, weights_only=True)
    # bitsandbytes packs what is quantised apart from the rest, for FSDP's sake.
    moments = saved["optimiser"]["state"][0]["__bnb_optimizer_quant_state__"]
    assert moments["state1"].dtype == moments["state2"].dtype == torch.uint8
    again = train_adapter(config, tiny_examples(), base, tmp_path / "torn")
    assert again.resumed_from_step == 5
    assert again.loss_curve == whole.loss_curve
    assert weights_of(tmp_path / "torn") == weights_of(tmp_path / "whole")


# ---- losses one step late --------------------------------------------------------------------------


def test_late_losses_are_the_same_losses(
    base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_time = train_adapter(TINY, tiny_examples(), base, tmp_path / "on-time")
    monkeypatch.setattr(run, "StepLosses", lambda read, late: StepLosses(read, late=True))
    shown: list[float] = []
    config = TINY.model_copy(update={"checkpoint_every_s": 1000.0})
    late = train_adapter(
        config, tiny_examples(), base, tmp_path / "late", on_progress=lambda p: shown.append(p.loss)
    )
    assert late.loss_curve == on_time.loss_curve
    losses = [loss for _, loss in late.loss_curve]
    assert shown == [losses[0], *losses[:-1]]  # the first is waited for, the others are the last known
    assert weights_of(tmp_path / "late") == weights_of(tmp_path / "on-time")


def test_a_loss_that_is_no_number_ends_the_run_one_step_later_at_most(
    base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "StepLosses", lambda read, late: StepLosses(read, late=True))
    real, steps = run.loss_and_gradient, 0

    def broken(*args: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        loss = real(*args)
        return loss * math.nan if steps == 4 else loss

    monkeypatch.setattr(run, "loss_and_gradient", broken)
    config = TINY.model_copy(update={"checkpoint_every_s": 1000.0})
    with pytest.raises(TrainingDiverged, match="step 4"):
        train_adapter(config, tiny_examples(), base, tmp_path)
    assert steps == 5


def test_losses_wait_for_nobody_but_the_first() -> None:
    read: list[float] = []
    losses = StepLosses(read, late=True)
    for number in (3.0, 2.0, 1.0):
        losses.add(torch.tensor(number))
    assert read == [3.0, 2.0]
    losses.catch_up()
    losses.catch_up()
    assert read == [3.0, 2.0, 1.0]


# ---- memory ----------------------------------------------------------------------------------------


def test_a_base_that_was_loaded_into_little_memory_recomputes_or_refuses(base: LoadedBase) -> None:
    from dataclasses import replace

    from training.memory import plan_memory

    config = TINY.model_copy(update={"batch_tokens": 4096, "max_seq_tokens": 512})
    thrifty = config.model_copy(update={"gradient_checkpointing": True})
    low, high = (plan_memory(base.info.dimensions, c, kind="cpu").total for c in (thrifty, config))
    assert low < high
    assert not base.recomputes(config)  # nothing is known of the memory here
    assert not replace(base, free_bytes=(high,)).recomputes(config)
    assert replace(base, free_bytes=(low,)).recomputes(config)
    with pytest.raises(NotEnoughMemory, match="Training on tiny needs"):
        replace(base, free_bytes=(low - 1,)).recomputes(config)
