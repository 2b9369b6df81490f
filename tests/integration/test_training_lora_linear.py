"""The fused LoRA layer against PEFT's own, in float32."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tests.bases import tiny_base
from training.config import LINEAR_LAYERS
from training.lora_linear import DropoutMasks, draw_keep_mask
from training.rms_norm import fuse
from training.speed_up import GATED_MLPS, RMS_NORMS, restore_forwards, speed_up

WIDTH, OUT, RANK, ALPHA = 16, 24, 4, 12


class Block(nn.Module):
    """Two projections of the same input, as q and k are."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, OUT, bias=bias)
        self.k_proj = nn.Linear(WIDTH, OUT, bias=bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.q_proj(x), self.k_proj(x)


def adapted_block(*, dropout: float = 0.0, bias: bool = False, **changes: object) -> nn.Module:
    """Return a block with random factors on both projections, so that A and B both get gradients."""
    torch.manual_seed(11)
    block = Block(bias).requires_grad_(False)
    return get_peft_model(
        block,  # type: ignore[arg-type]
        LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=dropout,
            target_modules=["q_proj", "k_proj"],
            init_lora_weights=False,
            **changes,  # type: ignore[arg-type]
        ),
    )


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("shape", [(5, WIDTH), (2, 7, WIDTH)])
def test_without_dropout_values_and_gradients_equal_peft(
    bias: bool, use_rslora: bool, shape: tuple[int, ...]
) -> None:
    peft = adapted_block(bias=bias, use_rslora=use_rslora).train()
    fused = copy.deepcopy(peft)
    assert speed_up(fused).layers == 2

    x_peft = torch.randn(shape).requires_grad_(True)
    x_fused = x_peft.detach().clone().requires_grad_(True)
    for model, x in ((peft, x_peft), (fused, x_fused)):
        q, k = model(x)
        (q.square().sum() + (k * 0.3).sum()).backward()

    torch.testing.assert_close(fused(x_fused)[0], peft(x_peft)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x_fused.grad, x_peft.grad, rtol=1e-4, atol=1e-5)
    expected = gradients(peft)
    assert len(expected) == 4
    for name, gradient in gradients(fused).items():
        torch.testing.assert_close(gradient, expected.pop(name), rtol=1e-4, atol=1e-5)
    assert expected == {}


def test_dropout_gradients_equal_the_written_out_formula() -> None:
    model = adapted_block(dropout=0.25).train()
    masks = speed_up(model)
    layer = model.base_model.model.q_proj  # type: ignore[union-attr]
    x = torch.randn(6, WIDTH).requires_grad_(True)
    torch.manual_seed(23)
    masks.renew(6, torch.float32)
    out = layer(x)
    out.square().sum().backward()
    ours = [x.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad]

    torch.manual_seed(23)
    masks.renew(6, torch.float32)
    keep = (masks.draw(x.detach()) != 0).float()
    a, b = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    scale = ALPHA / RANK / 0.75
    expected = x @ layer.base_layer.weight.t() + scale * (x * keep) @ a.t() @ b.t()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(ours, torch.autograd.grad(expected.square().sum(), (x, a, b)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mask_keeps_the_asked_share(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    mask = draw_keep_mask(200_901, 0.05, dtype)
    assert set(mask.unique().tolist()) == {0, -1}
    # 200,901 draws: one standard deviation is 0.0005.
    assert (mask != 0).float().mean().item() == pytest.approx(0.95, abs=0.003)


def test_windows_of_one_pool_differ_and_come_back_with_the_random_state() -> None:
    masks = DropoutMasks(2, 0.5, WIDTH, [torch.device("cpu")])
    torch.manual_seed(4)
    masks.renew(64, torch.float32)
    x = torch.randn(64, WIDTH)
    state = torch.get_rng_state()
    first, second = masks.draw(x), masks.draw(x)
    assert not torch.equal(first, second)
    # A layer that is computed again in the backward pass gets its random state back, and so its window.
    torch.set_rng_state(state)
    assert torch.equal(masks.draw(x), first)
    masks.renew(64, torch.float32)
    torch.set_rng_state(state)
    assert not torch.equal(masks.draw(x), first)


def test_dropout_keeps_the_expected_value() -> None:
    model = adapted_block(dropout=0.3).train()
    speed_up(model)
    rows = torch.randn(1, WIDTH).expand(40_000, WIDTH).contiguous()
    with torch.no_grad():
        dropped = model(rows)[0]
        plain = model.eval()(rows[:1])[0]
    error = (dropped.mean(0) - plain[0]).abs()
    assert (error < 5 * dropped.std(0) / 40_000**0.5).all()
    assert dropped.std(0).min() > 0


def test_layers_that_read_the_same_input_share_its_mask() -> None:
    model = adapted_block(dropout=0.5).train()
    speed_up(model)
    q, k = model.base_model.model.q_proj, model.base_model.model.k_proj  # type: ignore[union-attr]
    with torch.no_grad():
        for source, target in zip(q.parameters(), k.parameters(), strict=True):
            target.copy_(source)
        x = torch.randn(9, WIDTH)
        assert torch.equal(q(x), k(x))
        assert not torch.equal(q(x), k(x.clone()))


def test_evaluation_drops_nothing() -> None:
    model = adapted_block(dropout=0.5).eval()
    expected = model(torch.ones(3, WIDTH))[0]
    speed_up(model)
    torch.testing.assert_close(model(torch.ones(3, WIDTH))[0], expected, rtol=1e-5, atol=1e-5)


def test_a_switched_off_adapter_leaves_the_base() -> None:
    model = adapted_block()
    x = torch.randn(4, WIDTH)
    base = model.base_model.model.q_proj.base_layer(x)  # type: ignore[union-attr, operator]
    speed_up(model)
    with model.disable_adapter():  # type: ignore[operator]
        assert torch.equal(model(x)[0], base)
    assert not torch.allclose(model(x)[0], base)


def test_dora_keeps_pefts_own_forward() -> None:
    model = adapted_block(use_dora=True)
    x = torch.randn(4, WIDTH)
    expected = model(x)[0]
    assert speed_up(model).layers == 0
    assert torch.equal(model(x)[0], expected)


# ---- the other fused forwards ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_and_its_gradient_equal_transformers_own(dtype: torch.dtype) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    torch.manual_seed(7)
    norm = LlamaRMSNorm(24, eps=1e-5).to(dtype).requires_grad_(False)
    norm.weight.copy_(1 + 0.3 * torch.randn(24))
    x = (3 * torch.randn(2, 5, 24)).to(dtype).requires_grad_(True)
    upstream = torch.randn(2, 5, 24).to(dtype)
    kept = upstream.clone()

    ours = fuse(norm)(x)
    expected = norm(x)

    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(ours, expected, **close)
    (ours_grad,) = torch.autograd.grad(ours, x, upstream)
    (expected_grad,) = torch.autograd.grad(expected, x, upstream)
    torch.testing.assert_close(ours_grad, expected_grad, **close)
    assert torch.equal(upstream, kept)  # the gradient is read, never written


def test_the_base_gets_its_own_forwards_back() -> None:
    base = tiny_base()
    speed_up(get_peft_model(base.model, LoraConfig(r=RANK, target_modules=list(LINEAR_LAYERS))))
    changed = [m for m in base.model.modules() if type(m).__name__ in GATED_MLPS + RMS_NORMS]
    assert changed and all("forward" in m.__dict__ for m in changed)
    restore_forwards(base.model)
    assert not any("forward" in m.__dict__ for m in changed)
