"""Our cross entropy against torch's, in float32."""

from __future__ import annotations

import pytest
import torch

from training.loss import CHUNK_TOKENS, reply_cross_entropy, reply_log_likelihood

WIDTH, VOCABULARY = 24, 301


def _case(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, WIDTH, generator=generator).requires_grad_(True)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
    return hidden, weight, torch.randint(VOCABULARY, (tokens,), generator=generator)


@pytest.mark.parametrize("tokens", [0, 1, CHUNK_TOKENS - 1, CHUNK_TOKENS, CHUNK_TOKENS + 1, 300])
def test_loss_and_gradient_equal_torch(tokens: int) -> None:
    hidden, weight, targets = _case(tokens)
    ours = reply_cross_entropy(hidden, weight, targets) / max(1, tokens)
    ours.backward()
    gradient, hidden.grad = hidden.grad, None

    expected = torch.nn.functional.cross_entropy(hidden @ weight.t(), targets, reduction="sum")
    (expected / max(1, tokens)).backward()

    assert gradient is not None and hidden.grad is not None
    assert ours.item() == pytest.approx(expected.item() / max(1, tokens), rel=1e-5, abs=1e-5)
    torch.testing.assert_close(gradient, hidden.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [0, 1, CHUNK_TOKENS, CHUNK_TOKENS + 1])
def test_log_likelihood_equals_torch(tokens: int) -> None:
    hidden, weight, targets = _case(tokens)
    expected = -torch.nn.functional.cross_entropy(hidden @ weight.t(), targets, reduction="none")
    torch.testing.assert_close(
        reply_log_likelihood(hidden, weight, targets), expected.detach(), rtol=1e-5, atol=1e-5
    )


def test_the_measured_likelihood_is_float32_even_on_bf16_states() -> None:
    hidden, weight, targets = _case(5)
    measured = reply_log_likelihood(hidden.detach().bfloat16(), weight.bfloat16(), targets)
    assert measured.dtype is torch.float32


def test_poisoned_states_give_a_loss_that_is_not_a_number() -> None:
    hidden, weight, targets = _case(3)
    with torch.no_grad():
        hidden[1, 0] = float("nan")
    assert reply_cross_entropy(hidden, weight, targets).isnan()


def test_a_hopeless_prediction_costs_much_and_stays_finite() -> None:
    hidden = torch.tensor([[1e4]]).requires_grad_(True)
    loss = reply_cross_entropy(hidden, torch.tensor([[1.0], [-1.0]]), torch.tensor([1]))
    loss.backward()
    assert hidden.grad is not None
    assert 60 < loss.item() < 100
    assert hidden.grad.item() == pytest.approx(2.0)
