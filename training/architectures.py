"""Which base models our training computes exactly, and the sentence for those that it does not.

`training/attention.py` knows plain causal attention and `training/loss.py` a plain output matrix. A model
that bends either (a soft cap on scores or logits, a window shorter than the rows, a logit scale) would train
without an error, on numbers that are not its own. So the architectures are listed, each is compared with
transformers' own forward pass in tests/integration/test_equals_peft.py, and anything else is refused.
"""

from __future__ import annotations

from typing import Any

from training.errors import ConfigError

PROVEN = ("gemma", "gemma3_text", "llama", "mistral", "qwen2", "qwen3")
"""`model_type` of transformers' configurations whose training equals PEFT's."""


def refuse_unproven(model_config: Any, max_seq_tokens: int) -> None:
    """Raise ConfigError when a base with this transformers configuration would not be trained exactly.

    `max_seq_tokens` is the longest row: a sliding window that no row outgrows is the causal mask.
    """
    name = model_config.model_type
    if name not in PROVEN:
        raise ConfigError(
            f"The base model's architecture {name} is not one whose training is proven to be exact. "
            f"Choose a base model of one of these: {', '.join(PROVEN)}."
        )
    for field, what in (
        ("attn_logit_softcapping", "soft-caps its attention scores"),
        ("final_logit_softcapping", "soft-caps its logits"),
        ("use_bidirectional_attention", "attends to later tokens"),
    ):
        if value := getattr(model_config, field, None):
            raise ConfigError(
                f"The base model {what} ({field} {value}), which the training does not compute. "
                "Choose a base model without it."
            )
    window = _window(model_config)
    if window is not None and max_seq_tokens > window:
        raise ConfigError(
            f"max_seq_tokens is {max_seq_tokens}, but the base model's attention reaches back only {window} "
            f"tokens. Set max_seq_tokens to {window} or less."
        )


def _window(model_config: Any) -> int | None:
    """Return the shortest reach of the model's attention, in tokens; None where every layer sees the row."""
    layers = getattr(model_config, "layer_types", None)
    if layers is not None and "sliding_attention" not in layers:
        return None
    return getattr(model_config, "sliding_window", None)
