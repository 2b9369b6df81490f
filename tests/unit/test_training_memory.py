"""What a training needs in memory, by arithmetic, and what is said when a device does not have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bases import TINY_HIDDEN, TINY_LAYERS, tiny_base, tiny_base_model
from training.base_models import find_base_model, load_base_models
from training.config import LoraConfig, TrainConfig
from training.device import attention_for
from training.errors import NotEnoughMemory
from training.machine_memory import free_machine_bytes
from training.memory import (
    LOGITS_CHUNK_TOKENS,
    MemoryPlan,
    adapter_parameters,
    choose_gpus,
    fit_memory,
    memory_table,
    plan_memory,
    weights_per_gpu,
)

GB = 10**9
LLAMA_8B = find_base_model("llama-3.1-8b").dimensions
LLAMA_70B = find_base_model("llama-3.3-70b").dimensions
PRESET = TrainConfig(max_seq_tokens=2048, batch_tokens=2048, gradient_checkpointing=False)
NF4 = PRESET.model_copy(update={"quantise": "nf4"})
THRIFTY = NF4.model_copy(update={"gradient_checkpointing": True})
AUTO = NF4.model_copy(update={"gradient_checkpointing": "auto"})
PLAN = MemoryPlan(
    weights=40 * GB, adapter=4 * GB, activations=6 * GB, logits=GB, fixed=2 * GB, gradient_checkpointing=True
)


# ---- the parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "parameters"),
    # As counted from the published weights: model cards, and SmolLM2's own GGUF.
    [("smollm2-135m", 134_515_008), ("llama-3.1-8b", 8_030_261_248), ("llama-3.3-70b", 70_553_706_496)],
)
def test_the_dimensions_give_the_published_number_of_parameters(base: str, parameters: int) -> None:
    assert find_base_model(base).dimensions.parameters == parameters


def test_the_tiny_bases_parts_are_what_torch_counts() -> None:
    dimensions = tiny_base_model().dimensions
    assert dimensions.parameters == sum(p.numel() for p in tiny_base().model.parameters())
    config = TrainConfig(lora=LoraConfig(rank=4, alpha=8))
    assert adapter_parameters(dimensions, config) == TINY_LAYERS * 4 * (64 + 48 + 48 + 64 + 96 + 96 + 96)
    assert dimensions.hidden == TINY_HIDDEN


@pytest.mark.parametrize(
    ("base", "numbers"),
    [("smollm2-135m", 4_884_480), ("llama-3.1-8b", 41_943_040), ("llama-3.3-70b", 207_093_760)],
)
def test_the_adapter_has_the_size_that_the_presets_state(base: str, numbers: int) -> None:
    assert adapter_parameters(find_base_model(base).dimensions, TrainConfig()) == numbers


def test_nf4_takes_a_little_more_than_half_a_byte_per_linear_weight() -> None:
    saved = plan_memory(LLAMA_8B, PRESET).weights - plan_memory(LLAMA_8B, NF4).weights
    assert saved == pytest.approx(LLAMA_8B.linear_parameters * (2 - 0.516), rel=0.001)


@pytest.mark.parametrize(
    ("changes", "bytes_a_number"),
    [
        ({"validation_fraction": 0}, 20),
        ({"validation_fraction": 0, "optimiser": "paged_adamw_8bit"}, 14),
        ({"average_from": None}, 24),  # the best weights so far
        ({}, 28),  # and the mean of the steps
    ],
)
def test_the_optimiser_and_the_early_stop_keep_some_bytes_per_number(
    changes: dict[str, object], bytes_a_number: int
) -> None:
    numbers = adapter_parameters(LLAMA_8B, PRESET)
    assert plan_memory(LLAMA_8B, PRESET.model_copy(update=changes)).adapter == bytes_a_number * numbers


def test_activations_grow_with_the_tokens_of_a_batch_and_recomputing_leaves_a_fraction() -> None:
    double = PRESET.model_copy(update={"max_seq_tokens": 4096, "batch_tokens": 4096})
    plain = plan_memory(LLAMA_8B, PRESET).activations
    assert plan_memory(LLAMA_8B, double).activations == pytest.approx(2 * plain, rel=0.01)
    recomputed = PRESET.model_copy(update={"gradient_checkpointing": True})
    assert plan_memory(LLAMA_8B, recomputed).activations < plain / 10


def test_one_long_mail_counts_when_it_is_longer_than_the_budget_of_a_batch() -> None:
    small = PRESET.model_copy(update={"batch_tokens": 256})
    assert plan_memory(LLAMA_8B, small) == plan_memory(LLAMA_8B, PRESET)
    assert (
        plan_memory(LLAMA_8B, small, longest_tokens=200).activations
        < plan_memory(LLAMA_8B, PRESET).activations / 4
    )


def test_the_chunk_is_the_one_that_the_loss_takes() -> None:
    from training.loss import CHUNK_TOKENS

    assert CHUNK_TOKENS == LOGITS_CHUNK_TOKENS


# ---- does it fit -----------------------------------------------------------------------------------


def test_the_presets_fit_the_gpus_that_they_are_for() -> None:
    from training.config import load_train_config

    fit_memory(LLAMA_8B, load_train_config("llama-3.1-8b"), [23 * GB], kind="cuda", base_model="8b")
    fit_memory(LLAMA_70B, load_train_config("llama-3.3-70b"), [79 * GB], kind="cuda", base_model="70b")


def test_activations_are_recomputed_only_when_memory_asks_for_it() -> None:
    def plan(free: int) -> MemoryPlan:
        return fit_memory(LLAMA_8B, AUTO, [free], kind="cuda", base_model="8b")

    assert not plan(40 * GB).gradient_checkpointing
    assert plan(16 * GB).gradient_checkpointing
    off = AUTO.model_copy(update={"gradient_checkpointing": False})
    with pytest.raises(NotEnoughMemory, match="With gradient_checkpointing: true"):
        fit_memory(LLAMA_8B, off, [16 * GB], kind="cuda", base_model="8b")


def test_a_refusal_names_both_numbers_and_what_would_fit() -> None:
    with pytest.raises(
        NotEnoughMemory, match=r"llama needs 19\.\d GB and the GPU has 10\.0 GB free"
    ) as refused:
        fit_memory(
            LLAMA_8B,
            PRESET.model_copy(update={"gradient_checkpointing": "auto"}),
            [10 * GB],
            kind="cuda",
            base_model="llama",
        )
    assert "quantise: nf4" in str(refused.value) and "max_seq_tokens" not in str(refused.value)
    assert refused.value.free_bytes == 10 * GB < refused.value.needed_bytes


def test_a_shorter_sequence_is_proposed_when_four_bits_are_not_enough() -> None:
    needed = plan_memory(LLAMA_8B, THRIFTY.model_copy(update={"optimiser": "paged_adamw_8bit"})).total
    with pytest.raises(NotEnoughMemory, match="max_seq_tokens: 1024, batch_tokens: 1024"):
        fit_memory(LLAMA_8B, THRIFTY, [needed - GB // 10], kind="cuda", base_model="8b")


def test_what_can_never_fit_is_said_so() -> None:
    with pytest.raises(NotEnoughMemory, match="smaller base model or a larger machine"):
        fit_memory(LLAMA_70B, THRIFTY, [10 * GB], kind="cpu", base_model="70b")


# ---- several GPUs ----------------------------------------------------------------------------------


def test_a_base_that_fits_one_gpu_is_not_spread_and_goes_to_the_freest() -> None:
    assert choose_gpus(PLAN, [60 * GB, 79 * GB]) == [1]
    assert choose_gpus(PLAN, [40 * GB, 30 * GB]) == [0, 1]
    assert choose_gpus(PLAN, [30 * GB, 5 * GB, 40 * GB]) == [0, 2]


def test_each_gpu_holds_weights_beside_its_share_of_the_rest() -> None:
    room = weights_per_gpu(PLAN, [30 * GB, 40 * GB], [0, 1])
    # 1 GB of context and 3 GB of activations each; the optimiser on the first, the logits on the last.
    assert room == {0: (30 - 1 - 3 - 4) * GB, 1: (40 - 1 - 3 - 1) * GB}
    assert sum(room.values()) >= PLAN.weights


# ---- the table -------------------------------------------------------------------------------------


def test_the_table_has_a_row_per_base_precision_and_length_and_stands_in_the_documents() -> None:
    from training.settings import PROJECT_ROOT

    rows = memory_table().splitlines()
    assert len(rows) == 2 + len(load_base_models()) * 2 * 4
    assert memory_table() in (PROJECT_ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")


# ---- the device ------------------------------------------------------------------------------------


def test_a_containers_limit_counts_less_what_is_used_but_for_file_caches(tmp_path: Path) -> None:
    without = free_machine_bytes(tmp_path)
    assert without > 0
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 200000\n")
    assert free_machine_bytes(tmp_path) == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_machine_bytes(tmp_path) > 500_000


def test_a_container_under_the_older_cgroups_is_limited_too(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text("900000\n")
    (folder / "memory.usage_in_bytes").write_text("1000000\n")
    (folder / "memory.stat").write_text("total_inactive_file 0\n")
    assert free_machine_bytes(tmp_path) == 0


@pytest.mark.parametrize(
    ("device", "precision", "capability", "installed", "expected"),
    [
        ("cpu", "bf16", None, True, "ragged"),
        ("cuda", "bf16", (9, 0), True, "varlen"),
        ("cuda", "bf16", (9, 0), False, "sdpa"),
        ("cuda", "fp32", (9, 0), True, "sdpa"),
        ("cuda", "bf16", (7, 5), True, "sdpa"),
    ],
)
def test_attention_is_chosen_by_device_precision_and_what_is_installed(
    device: str, precision: str, capability: tuple[int, int] | None, installed: bool, expected: str
) -> None:
    chosen = attention_for(device, precision, capability=capability, flash_installed=installed)
    assert chosen == expected
