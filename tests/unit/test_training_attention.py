"""Our attention against PyTorch's own, in float32."""

from __future__ import annotations

import pytest
import torch

from training.attention import NAME, RowLayout, ragged_attention, register


@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "tokens", "width"),
    [(1, 1, 1, 1, 4), (2, 9, 3, 48, 64), (3, 8, 8, 17, 16), (2, 4, 1, 33, 8), (1, 32, 8, 5, 128)],
)
def test_values_and_gradients_equal_scaled_dot_product_attention(
    batch: int, heads: int, kv_heads: int, tokens: int, width: int
) -> None:
    torch.manual_seed(7)
    # As transformers hands them over: (batch, tokens, heads, width) seen through a transpose.
    query = torch.randn(batch, tokens, heads, width).transpose(1, 2).requires_grad_(True)
    key = torch.randn(batch, tokens, kv_heads, width).transpose(1, 2).requires_grad_(True)
    value = torch.randn(batch, tokens, kv_heads, width).transpose(1, 2).requires_grad_(True)
    upstream = torch.randn(batch, tokens, heads, width)

    ours, nothing = ragged_attention(torch.nn.Module(), query, key, value, None)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    ).transpose(1, 2)

    assert nothing is None
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    inputs = (query, key, value)
    for ours_grad, expected_grad in zip(
        torch.autograd.grad(ours, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours_grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_a_given_scale_replaces_the_usual_one() -> None:
    torch.manual_seed(7)
    query, key, value = (torch.randn(1, 2, 6, 8) for _ in range(3))
    ours, _ = ragged_attention(torch.nn.Module(), query, key, value, None, scaling=0.5)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.5)
    torch.testing.assert_close(ours.transpose(1, 2), expected, rtol=1e-5, atol=1e-5)


def test_padding_on_the_right_changes_no_real_token() -> None:
    torch.manual_seed(7)
    query, key, value = (torch.randn(1, 3, 10, 8) for _ in range(3))
    whole, _ = ragged_attention(torch.nn.Module(), query, key, value, None)
    for tensor in (query, key, value):
        tensor[:, :, 6:] = 99.0
    padded, _ = ragged_attention(torch.nn.Module(), query, key, value, None)
    assert torch.equal(padded[:, :6], whole[:, :6])


def test_transformers_finds_it_by_name() -> None:
    from transformers import AttentionInterface

    assert register() == NAME
    assert AttentionInterface()[NAME] is ragged_attention


@pytest.mark.parametrize(("prefix", "lengths"), [(0, [5, 1, 9]), (4, [5, 1, 9]), (12, [3, 2]), (3, [1])])
def test_ragged_rows_behind_a_shared_prefix_equal_each_row_alone(prefix: int, lengths: list[int]) -> None:
    torch.manual_seed(7)
    heads, kv_heads, width = 6, 2, 8
    layout = RowLayout.of(prefix, lengths, heads, kv_heads, torch.float32, torch.device("cpu"))
    total = prefix + sum(lengths)
    query = torch.randn(1, total, heads, width).transpose(1, 2).requires_grad_(True)
    key = torch.randn(1, total, kv_heads, width).transpose(1, 2).requires_grad_(True)
    value = torch.randn(1, total, kv_heads, width).transpose(1, 2).requires_grad_(True)
    inputs = (query, key, value)
    ours, _ = ragged_attention(torch.nn.Module(), query, key, value, None, layout=layout)

    parts, start = [], prefix
    for number, length in enumerate(lengths):
        own = [*range(prefix), *range(start, start + length)]
        out = torch.nn.functional.scaled_dot_product_attention(
            *(x[:, :, own] for x in inputs), is_causal=True, enable_gqa=True
        ).transpose(1, 2)
        parts += [out[:, :prefix], out[:, prefix:]] if number == 0 else [out[:, prefix:]]
        start += length
    expected = torch.cat(parts, dim=1)

    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(expected)
    for ours_grad, expected_grad in zip(
        torch.autograd.grad(ours, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours_grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_a_layout_says_where_each_token_stands_in_its_text() -> None:
    layout = RowLayout.of(2, [3, 1], 2, 1, torch.float32, torch.device("cpu"))
    assert layout.positions.tolist() == [0, 1, 2, 3, 4, 2]
