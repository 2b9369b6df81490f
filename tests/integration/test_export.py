"""The proof that what is served is what was trained: PEFT in torch against the GGUF adapter in llama.cpp.

The base alone differs a little between the two (llama.cpp multiplies 4-bit weights with 8-bit activations);
a right export adds nothing to that noise, and one without the row permutation of q and k adds a lot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from serving.llamacpp import LlamaCppServing
from tests.bases import persona_mails
from training import export
from training.base_models import find_base_model
from training.config import LINEAR_LAYERS, TrainConfig
from training.dataset import ChatTemplate, encode, prompt_messages
from training.loaded_base import LoadedBase, load_base, restore_base
from training.lora import train_adapter

TOP = 20
STRONG, WEAK = 0.3, 0.01
"""Standard deviations of lora_B on q and k, and elsewhere: turns heads without turning text into noise."""
NOISE_FACTOR, NOISE_FLOOR = 3, 0.002
"""How much more than the base's own noise, and how many nat besides, a right export may differ.
Measured: base 0.0014 nat, right 0.0020, unpermuted 1.20."""
REQUESTS = (
    "Write an email about: moving our meeting to Thursday",
    "Write an email about: thank you for your help last week",
    "Write a reply to the email below, subject: lunch",
    "Write an email about: the broken printer on floor 2",
    "Write a reply about: the offer of 1,250.00",
    "Write an email about: holiday plans",
    "Write a reply.",
    "Write an email about: parking at the lighthouse",
)


@pytest.fixture(scope="module")
def base(base_cache: Path) -> LoadedBase:
    return load_base(find_base_model("smollm2-135m"), base_cache, TrainConfig(precision="fp32"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCppServing]:
    gguf = find_base_model("smollm2-135m").gguf_path
    assert gguf is not None
    serving = LlamaCppServing(gguf, tmp_path_factory.mktemp("published"), context_tokens=512, threads=1)
    yield serving
    serving.close()


@pytest.fixture(scope="module")
def prompts(base: LoadedBase) -> list[str]:
    template = ChatTemplate.of(base.tokenizer)
    # The answer's first words are given: right after the header nearly every voice says "Subject".
    return [template.render(prompt_messages(request)) + "Hi Anna,\n\nI" for request in REQUESTS]


@pytest.fixture(scope="module")
def adapter_dir(base: LoadedBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT adapter on all layers whose q and k factors matter most."""
    torch.manual_seed(29)
    model = get_peft_model(
        base.model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=list(LINEAR_LAYERS))
    )
    for name, factor in model.named_parameters():
        if "lora_B" in name:
            strong = "q_proj" in name or "k_proj" in name
            torch.nn.init.normal_(factor.data, std=STRONG if strong else WEAK)
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    model.save_pretrained(str(folder))
    restore_base(model, base)
    return folder


def torch_logprobs(model: Any, base: LoadedBase, prompts: list[str]) -> list[torch.Tensor]:
    found = []
    for prompt in prompts:
        ids = base.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            found.append(torch.log_softmax(model(input_ids=ids).logits[0, -1].double(), dim=-1))
    return found


def divergence(expected: torch.Tensor, served: dict[int, float]) -> float:
    """Return KL(torch ‖ llama.cpp) in nat, over the engine's likeliest tokens and the rest as one."""
    assert len(served) == TOP
    p = [math.exp(expected[token].item()) for token in served]
    q = [math.exp(logprob) for logprob in served.values()]
    p.append(max(1e-12, 1 - sum(p)))
    q.append(max(1e-12, 1 - sum(q)))
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def answers(engine: LlamaCppServing, name: str | None, prompts: list[str]) -> list[dict[int, float]]:
    return [engine.next_token_logprobs(name, prompt, TOP) for prompt in prompts]


def mean_divergence(expected: list[torch.Tensor], served: list[dict[int, float]]) -> float:
    found = [divergence(logprobs, answer) for logprobs, answer in zip(expected, served, strict=True)]
    return sum(found) / len(found)


def peft_logprobs(base: LoadedBase, adapter_dir: Path, prompts: list[str]) -> list[torch.Tensor]:
    model = PeftModel.from_pretrained(base.model, str(adapter_dir)).eval()
    try:
        return torch_logprobs(model, base, prompts)
    finally:
        restore_base(model, base)


def publish(engine: LlamaCppServing, base: LoadedBase, adapter_dir: Path, out: Path, name: str) -> str:
    digest = export.export_gguf(adapter_dir, base.info, base.model.config.to_dict(), out)
    assert engine.publish(out, name).digest == digest
    return name


@pytest.fixture(scope="module")
def base_answers(engine: LlamaCppServing, prompts: list[str]) -> list[dict[int, float]]:
    return answers(engine, None, prompts)


@pytest.fixture(scope="module")
def noise(base: LoadedBase, base_answers: list[dict[int, float]], prompts: list[str]) -> float:
    """How far the plain base is apart between torch and llama.cpp, nat."""
    return mean_divergence(torch_logprobs(base.model, base, prompts), base_answers)


def test_the_base_itself_answers_alike_in_both(noise: float) -> None:
    assert noise < 0.02


def test_the_served_adapter_is_the_trained_one_and_needs_its_rows_permuted(
    base: LoadedBase,
    engine: LlamaCppServing,
    prompts: list[str],
    noise: float,
    base_answers: list[dict[int, float]],
    adapter_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = peft_logprobs(base, adapter_dir, prompts)
    right = publish(engine, base, adapter_dir, tmp_path / "right.gguf", "emailai-right:v1")
    monkeypatch.setattr(export, "permute_rows", lambda b, heads: b)
    wrong = publish(engine, base, adapter_dir, tmp_path / "wrong.gguf", "emailai-unpermuted:v1")

    served_right = mean_divergence(expected, answers(engine, right, prompts))
    assert served_right < NOISE_FACTOR * noise + NOISE_FLOOR
    assert mean_divergence(expected, answers(engine, wrong, prompts)) > 20 * served_right
    # The adapter is no idle one: the base answers differently.
    assert mean_divergence(expected, base_answers) > 5 * served_right


def test_what_training_leaves_is_what_the_engine_serves(
    smollm2: LoadedBase,
    base: LoadedBase,
    engine: LlamaCppServing,
    prompts: list[str],
    noise: float,
    base_answers: list[dict[int, float]],
    tmp_path: Path,
) -> None:
    config = TrainConfig(batch_tokens=192, learning_rate=2e-3, epochs=1, max_steps=4)
    examples = [encode(mail, smollm2.tokenizer, 256) for mail in persona_mails(10)]
    result = train_adapter(config, examples, smollm2, tmp_path)
    folder = Path(result.adapter_dir)

    expected = peft_logprobs(base, folder, prompts[:4])
    name = publish(engine, base, folder, tmp_path / "adapter.gguf", "emailai-trained:v1")
    served = mean_divergence(expected, answers(engine, name, prompts[:4]))
    assert served < NOISE_FACTOR * noise + NOISE_FLOOR
    assert mean_divergence(expected, base_answers[:4]) > 5 * served
