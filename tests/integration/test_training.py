"""Training itself: on a tiny random base where exactness is the point, on SmolLM2-135M where learning is."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from serving.llamacpp import LlamaCppServing
from tests.bases import persona_mails, tiny_base, tiny_examples
from training.base_models import find_base_model, load_tokenizer, weights_path
from training.checkpoint import CHECKPOINT_FILE
from training.config import LoraConfig, TrainConfig
from training.dataset import ChatTemplate, EncodedExample, encode, prompt_messages
from training.errors import AdapterRefused, ConfigError, TrainingCancelled, TrainingDiverged
from training.evaluate import held_out_losses, losses_of_saved_adapter
from training.export import sha256_of
from training.loaded_base import LoadedBase, load_base
from training.lora import train_adapter
from training.plan import plan_epoch, rate_factor
from training.schemas import Example, MailLoss, TrainingProgress, TrainingResult
from training.settings import PROJECT_ROOT
from training.skill import mean_loss
from training.start_adapter import CONFIG_FILE, WEIGHTS_FILE

TINY = TrainConfig(
    precision="fp32",
    epochs=3,
    batch_tokens=64,
    learning_rate=5e-3,
    checkpoint_every_s=1e-9,  # after every step
    lora=LoraConfig(rank=4, alpha=8, dropout=0.2),
)


@pytest.fixture
def base() -> LoadedBase:
    return tiny_base()


def digest(result: TrainingResult) -> str:
    return sha256_of(Path(result.adapter_dir) / "adapter_model.safetensors")


def steps_of(config: TrainConfig, count: int = 12) -> int:
    examples = tiny_examples(count)
    return sum(len(plan_epoch(examples, config.batch_tokens, config.seed + e)) for e in range(config.epochs))


def stop_at(step: int, error: Exception) -> Callable[[TrainingProgress], None]:
    """Return an `on_progress` that raises when `step` is done, as a machine that dies there."""

    def on_progress(progress: TrainingProgress) -> None:
        if progress.step == step:
            raise error

    return on_progress


# ---- one run ---------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(
    base: LoadedBase, tmp_path: Path
) -> None:
    one = train_adapter(TINY, tiny_examples(), base, tmp_path / "one")
    torch.rand(1000)  # whatever was drawn before does not matter
    two = train_adapter(TINY, tiny_examples(), tiny_base(), tmp_path / "two")
    other = train_adapter(TINY.model_copy(update={"seed": 18}), tiny_examples(), base, tmp_path / "other")
    assert digest(one) == digest(two) != digest(other)
    assert one.loss_curve == two.loss_curve


def test_the_result_says_what_was_done(base: LoadedBase, tmp_path: Path) -> None:
    seen: list[TrainingProgress] = []
    examples = tiny_examples()
    result = train_adapter(TINY, examples, base, tmp_path, on_progress=seen.append)
    steps = steps_of(TINY)
    tokens = TINY.epochs * sum(len(e.input_ids) for e in examples)
    assert result.steps == len(seen) == steps
    assert (seen[-1].step, seen[-1].steps, seen[-1].tokens) == (steps, steps, tokens)
    assert seen[-1].eta_seconds == 0 < seen[0].eta_seconds
    assert seen[-1].epoch == pytest.approx(TINY.epochs, abs=0.6)
    assert [loss for _, loss in result.loss_curve] == [p.loss for p in seen]
    assert result.train_tokens == tokens
    assert result.train_tokens_per_second == pytest.approx(tokens / result.train_seconds)
    # q, k, v, o, gate, up, down on 2 layers, rank 4: rank x (in + out) each.
    assert result.trainable_parameters == 2 * 4 * (64 + 48 + 48 + 64 + 96 + 96 + 96)
    assert result.peak_memory_bytes > 10_000_000
    assert result.resumed_from_step == 0
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir() if path.suffix != ".md") == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_max_steps_ends_the_run(base: LoadedBase, tmp_path: Path) -> None:
    short = TINY.model_copy(update={"max_steps": 2})
    assert len(train_adapter(short, tiny_examples(), base, tmp_path).loss_curve) == 2


def test_nothing_to_train_on_is_refused(base: LoadedBase, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no examples"):
        train_adapter(TINY, [], base, tmp_path)


def test_recomputed_activations_give_the_same_adapter(base: LoadedBase, tmp_path: Path) -> None:
    plain = train_adapter(TINY, tiny_examples(), base, tmp_path / "plain")
    thrifty_config = TINY.model_copy(update={"gradient_checkpointing": True})
    thrifty = train_adapter(thrifty_config, tiny_examples(), base, tmp_path / "thrifty")
    for (_, expected), (_, loss) in zip(plain.loss_curve, thrifty.loss_curve, strict=True):
        assert loss == pytest.approx(expected, abs=1e-4)


# ---- options ---------------------------------------------------------------------------------------


def tensors_of(result: TrainingResult) -> dict[str, torch.Tensor]:
    return load_file(Path(result.adapter_dir) / "adapter_model.safetensors")


def test_rank_and_target_modules_are_the_adapters_shape(base: LoadedBase, tmp_path: Path) -> None:
    lora = LoraConfig(rank=2, alpha=4, dropout=0, target_modules=("q_proj", "v_proj"))
    tensors = tensors_of(
        train_adapter(TINY.model_copy(update={"lora": lora}), tiny_examples(), base, tmp_path)
    )
    assert {name.split(".")[-3] for name in tensors} == {"q_proj", "v_proj"}
    assert {tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name} == {2}


@pytest.mark.parametrize(
    ("change", "times"),
    [
        ({"alpha": 16}, 2.0),
        ({"use_rslora": True}, 2.0),  # alpha / sqrt(4) instead of alpha / 4
    ],
)
def test_alpha_and_rslora_scale_what_an_adapter_does(
    base: LoadedBase, tmp_path: Path, change: dict[str, Any], times: float
) -> None:
    from peft import PeftModel

    def scale_of(config: TrainConfig, folder: Path) -> float:
        result = train_adapter(config, tiny_examples(), base, folder)
        model = PeftModel.from_pretrained(tiny_base().model, result.adapter_dir)
        # The attention layers have a scaling of their own, a number.
        found = [getattr(module, "scaling", None) for module in model.modules()]
        (scale,) = {scaling["default"] for scaling in found if isinstance(scaling, dict)}
        return float(scale)

    one_step = TINY.model_copy(update={"max_steps": 1})
    changed = one_step.model_copy(update={"lora": TINY.lora.model_copy(update=change)})
    assert scale_of(changed, tmp_path / "changed") == times * scale_of(one_step, tmp_path / "plain")


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": "cosine"},
        {"schedule": "constant"},
        {"packing": True},
        {"lora": TINY.lora.model_copy(update={"dropout": 0.0})},
    ],
    ids=["cosine", "constant", "packing", "no dropout"],
)
def test_an_option_trains_another_adapter_and_learns(
    base: LoadedBase, tmp_path: Path, change: dict[str, Any]
) -> None:
    plain = train_adapter(TINY, tiny_examples(), base, tmp_path / "plain")
    changed = train_adapter(TINY.model_copy(update=change), tiny_examples(), base, tmp_path / "changed")
    assert digest(changed) != digest(plain)
    assert changed.loss_curve[-1][1] < changed.loss_curve[0][1] - 0.1


def test_another_process_gives_the_same_adapter(base: LoadedBase, tmp_path: Path) -> None:
    """Dropout included: nothing of a process, not even its hash seed, decides what an adapter becomes."""
    here = train_adapter(TINY, tiny_examples(), base, tmp_path / "here")
    code = (
        "import sys; from pathlib import Path; from tests.integration.test_training import *; "
        "print(digest(train_adapter(TINY, tiny_examples(), tiny_base(), Path(sys.argv[1]))))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "there")],
        cwd=PROJECT_ROOT,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.split()[-1] == digest(here)


# ---- the base stays what it was --------------------------------------------------------------------


def logits_of(base: LoadedBase) -> torch.Tensor:
    with torch.no_grad():
        return base.model(torch.arange(40)[None] % 250).logits  # type: ignore[no-any-return, operator]


def traces_of(base: LoadedBase) -> dict[str, Any]:
    """Return whatever a job could leave behind on the base."""
    return {
        "modules": [(name, type(module).__name__) for name, module in base.model.named_modules()],
        "attributes": sorted(base.model.__dict__),
        "trainable": [name for name, p in base.model.named_parameters() if p.requires_grad],
        "training": base.model.training,
        "recomputing": base.model.is_activation_checkpointing,
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in base.model.modules()),
        "own forwards": [name for name, m in base.model.named_modules() if "forward" in m.__dict__],
    }


@pytest.mark.parametrize("ending", ["finished", "cancelled", "diverged", "crashed"])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_base_is_what_it_was_however_a_job_ends(
    base: LoadedBase, tmp_path: Path, ending: str, recompute: bool
) -> None:
    before, traces = logits_of(base), traces_of(base)
    config = TINY.model_copy(update={"gradient_checkpointing": recompute})
    arguments: dict[str, Any] = {
        "finished": {},
        "cancelled": {"should_stop": lambda: True},
        "diverged": {"on_progress": stop_at(2, TrainingDiverged("lost", step=2, loss=9.0))},
        "crashed": {"on_progress": stop_at(2, RuntimeError("boom"))},
    }[ending]
    for job in ("first", "second"):
        try:
            train_adapter(config, tiny_examples(), base, tmp_path / job, **arguments)
        except (TrainingCancelled, TrainingDiverged, RuntimeError):
            assert ending != "finished"
    assert torch.equal(logits_of(base), before)
    after = traces_of(base)
    after["attributes"] = sorted(set(after["attributes"]) - {"_require_grads_hooks"})
    assert after == traces


def test_a_job_in_a_cohort_gives_the_adapter_it_gives_alone(base: LoadedBase, tmp_path: Path) -> None:
    anna, boris = tiny_examples(seed=3), tiny_examples(seed=4)
    alone = train_adapter(TINY, boris, tiny_base(), tmp_path / "alone")
    recompute = TINY.model_copy(update={"gradient_checkpointing": True})
    train_adapter(recompute, anna, base, tmp_path / "anna")
    with pytest.raises(TrainingCancelled):
        train_adapter(TINY, anna, base, tmp_path / "cancelled", should_stop=lambda: True)
    second = train_adapter(TINY, boris, base, tmp_path / "boris")
    assert digest(second) == digest(alone)


def test_held_out_losses_leave_the_base_alone(base: LoadedBase, tmp_path: Path) -> None:
    before = logits_of(base)
    measured: list[list[MailLoss]] = []

    def measure(model: Any) -> None:
        measured.append(held_out_losses(model, base, tiny_examples(5, seed=9), 64))
        measured.append(held_out_losses(model, base, tiny_examples(5, seed=9), 64, adapter=False))

    result = train_adapter(TINY, tiny_examples(), base, tmp_path, after_training=measure)
    again = losses_of_saved_adapter(Path(result.adapter_dir), base, tiny_examples(5, seed=9), 64)
    assert again == measured[0] != measured[1]
    assert torch.equal(logits_of(base), before)


# ---- held-out losses -------------------------------------------------------------------------------


def test_held_out_losses_are_each_mails_own_in_the_order_given(base: LoadedBase, tmp_path: Path) -> None:
    examples = tiny_examples(7, seed=9)
    found: list[MailLoss] = []
    train_adapter(
        TINY.model_copy(update={"max_steps": 1}),
        tiny_examples(),
        base,
        tmp_path,
        after_training=lambda model: found.extend(held_out_losses(model, base, examples, 64, adapter=False)),
    )
    assert [loss.example_id for loss in found] == [example.id for example in examples]
    for example, loss in zip(examples, found, strict=True):
        with torch.no_grad():
            logits = base.model(torch.tensor([example.input_ids])).logits[0, :-1]  # type: ignore[operator]
        targets = torch.tensor(example.input_ids[1:])
        expected = torch.nn.functional.cross_entropy(
            logits[example.prompt_length - 1 :], targets[example.prompt_length - 1 :]
        )
        assert loss.nll == pytest.approx(expected.item(), abs=1e-4)
        assert loss.tokens == example.reply_length


# ---- crash and resume ------------------------------------------------------------------------------


def test_every_checkpoint_is_announced_once_it_is_whole(base: LoadedBase, tmp_path: Path) -> None:
    announced: list[int] = []
    state = tmp_path / "checkpoint" / "state.pt"
    result = train_adapter(
        TINY, tiny_examples(), base, tmp_path, on_checkpoint=lambda: announced.append(state.stat().st_size)
    )
    assert len(announced) == result.steps - 1 and all(announced)


class PowerCut(Exception):
    pass


@pytest.mark.parametrize("cut", [1, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_was_cut_off_ends_with_the_adapter_of_an_uninterrupted_one(
    tmp_path: Path, cut: int, precision: str
) -> None:
    config = TINY.model_copy(update={"precision": precision})
    base = tiny_base(precision=precision)
    whole = train_adapter(config, tiny_examples(), base, tmp_path / "whole")
    with pytest.raises(PowerCut):
        train_adapter(config, tiny_examples(), base, tmp_path / "cut", on_progress=stop_at(cut, PowerCut()))
    torch.rand(123)
    resumed = train_adapter(config, tiny_examples(), tiny_base(precision=precision), tmp_path / "cut")
    assert resumed.resumed_from_step == cut
    assert digest(resumed) == digest(whole)
    assert resumed.loss_curve == whole.loss_curve
    assert resumed.train_tokens == whole.train_tokens


def test_a_run_cut_off_twice_still_ends_the_same(base: LoadedBase, tmp_path: Path) -> None:
    whole = train_adapter(TINY, tiny_examples(), base, tmp_path / "whole")
    for cut in (2, 5):
        with pytest.raises(PowerCut):
            train_adapter(TINY, tiny_examples(), base, tmp_path / "cut", on_progress=stop_at(cut, PowerCut()))
    resumed = train_adapter(TINY, tiny_examples(), base, tmp_path / "cut")
    assert (resumed.resumed_from_step, digest(resumed)) == (5, digest(whole))


def test_a_run_that_died_after_its_last_step_only_saves_again(base: LoadedBase, tmp_path: Path) -> None:
    def die(_: Any) -> None:
        raise PowerCut

    with pytest.raises(PowerCut):
        train_adapter(TINY, tiny_examples(), base, tmp_path, after_training=die)
    seen: list[TrainingProgress] = []
    again = train_adapter(TINY, tiny_examples(), base, tmp_path, on_progress=seen.append)
    whole = train_adapter(TINY, tiny_examples(), base, tmp_path / "whole")
    assert seen == []
    assert again.resumed_from_step == again.steps == whole.steps
    assert digest(again) == digest(whole)
    assert again.train_tokens == whole.train_tokens
    assert again.train_tokens_per_second < 1e7


@pytest.mark.parametrize("what", ["config", "examples", "base"])
def test_a_checkpoint_of_something_else_is_ignored(base: LoadedBase, tmp_path: Path, what: str) -> None:
    with pytest.raises(PowerCut):
        train_adapter(TINY, tiny_examples(), base, tmp_path, on_progress=stop_at(3, PowerCut()))
    config, examples = TINY, tiny_examples()
    if what == "config":
        config = TINY.model_copy(update={"learning_rate": 4e-3})
    elif what == "examples":
        examples = tiny_examples(seed=4)
    else:
        base = replace(base, info=base.info.model_copy(update={"id": "another"}))
    assert train_adapter(config, examples, base, tmp_path).resumed_from_step == 0


@pytest.mark.parametrize("content", [b"", b"torn", "half", "a list"])
def test_a_torn_checkpoint_is_ignored(base: LoadedBase, tmp_path: Path, content: bytes | str) -> None:
    with pytest.raises(PowerCut):
        train_adapter(TINY, tiny_examples(), base, tmp_path, on_progress=stop_at(3, PowerCut()))
    path = tmp_path / "checkpoint" / CHECKPOINT_FILE
    if content == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif content == "a list":
        torch.save([1, 2], path)
    else:
        assert isinstance(content, bytes)
        path.write_bytes(content)
    resumed = train_adapter(TINY, tiny_examples(), base, tmp_path)
    whole = train_adapter(TINY, tiny_examples(), base, tmp_path / "whole")
    assert (resumed.resumed_from_step, digest(resumed)) == (0, digest(whole))


def test_a_crash_while_a_checkpoint_is_written_keeps_the_one_before(
    base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = torch.save, 0

    def die_at_the_third(value: Any, path: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            Path(path).write_bytes(b"half of it")
            raise PowerCut
        save(value, path)

    monkeypatch.setattr(torch, "save", die_at_the_third)
    with pytest.raises(PowerCut):
        train_adapter(TINY, tiny_examples(), base, tmp_path)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == [CHECKPOINT_FILE]
    assert train_adapter(TINY, tiny_examples(), base, tmp_path).resumed_from_step == 2


# ---- going on from an adapter ----------------------------------------------------------------------

STILL = TINY.model_copy(update={"learning_rate": 1e-30, "max_steps": 3})
"""Steps too small to change any weight."""


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """The PEFT files of an adapter that has learnt something."""
    return Path(train_adapter(TINY, tiny_examples(), tiny_base(), tmp_path / "start").adapter_dir)


def losses_after(config: TrainConfig, base: LoadedBase, folder: Path, **options: Any) -> list[MailLoss]:
    """Return the held-out losses of the adapter that a run ends with."""
    found: list[MailLoss] = []
    train_adapter(
        config,
        tiny_examples(seed=4),
        base,
        folder,
        after_training=lambda model: found.extend(held_out_losses(model, base, tiny_examples(5, seed=9), 64)),
        **options,
    )
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_going_on_by_no_distance_ends_exactly_where_it_started(tmp_path: Path, precision: str) -> None:
    config = TINY.model_copy(update={"precision": precision})
    base = tiny_base(precision=precision)
    first = Path(train_adapter(config, tiny_examples(), base, tmp_path / "start").adapter_dir)
    before = losses_of_saved_adapter(first, base, tiny_examples(5, seed=9), 64)
    still = STILL.model_copy(update={"precision": precision})
    assert losses_after(still, base, tmp_path / "on", start_from=first) == before
    assert losses_after(still, base, tmp_path / "fresh") != before


def test_going_on_begins_at_the_loss_of_the_start_and_improves_it(
    base: LoadedBase, tmp_path: Path, start: Path
) -> None:
    fresh = train_adapter(TINY, tiny_examples(), base, tmp_path / "fresh")
    further = train_adapter(TINY, tiny_examples(), base, tmp_path / "on", start_from=start)
    assert further.loss_curve[0][1] < fresh.loss_curve[0][1] - 0.1
    assert further.final_train_loss < fresh.final_train_loss


def test_a_start_that_has_nothing_left_to_learn_is_no_failure(base: LoadedBase, tmp_path: Path) -> None:
    flat = TINY.model_copy(
        update={"learning_rate": 1e-30, "epochs": 10, "lora": LoraConfig(rank=4, alpha=8, dropout=0)}
    )
    same = [replace(tiny_examples(1)[0], id=f"m{n}") for n in range(12)]
    one_step = flat.model_copy(update={"max_steps": 1})
    start = Path(train_adapter(one_step, same, base, tmp_path / "start").adapter_dir)
    assert train_adapter(flat, same, base, tmp_path / "on", start_from=start).steps >= 20


def test_an_incremental_run_that_was_cut_off_ends_with_the_adapter_of_an_uninterrupted_one(
    base: LoadedBase, tmp_path: Path, start: Path
) -> None:
    new = tiny_examples(seed=4)
    whole = train_adapter(TINY, new, base, tmp_path / "whole", start_from=start)
    with pytest.raises(PowerCut):
        train_adapter(TINY, new, base, tmp_path / "cut", start_from=start, on_progress=stop_at(3, PowerCut()))
    resumed = train_adapter(TINY, new, tiny_base(), tmp_path / "cut", start_from=start)
    assert resumed.resumed_from_step == 3
    assert (digest(resumed), resumed.loss_curve) == (digest(whole), whole.loss_curve)


@pytest.mark.parametrize("second", ["another start", "no start"])
def test_a_checkpoint_from_another_start_is_ignored(
    base: LoadedBase, tmp_path: Path, start: Path, second: str
) -> None:
    with pytest.raises(PowerCut):
        train_adapter(
            TINY, tiny_examples(), base, tmp_path, start_from=start, on_progress=stop_at(3, PowerCut())
        )
    other = train_adapter(TINY, tiny_examples(seed=6), base, tmp_path / "other")
    again = Path(other.adapter_dir) if second == "another start" else None
    assert train_adapter(TINY, tiny_examples(), base, tmp_path, start_from=again).resumed_from_step == 0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rank": 8}, "rank 4, not 8"),
        ({"alpha": 16}, "alpha 8"),
        ({"target_modules": ("q_proj", "v_proj")}, "target modules"),
        ({"use_rslora": True}, "rsLoRA False, not True"),
    ],
)
def test_a_start_of_another_shape_is_refused_and_leaves_the_base_alone(
    base: LoadedBase, tmp_path: Path, start: Path, change: dict[str, Any], complaint: str
) -> None:
    before, traces = logits_of(base), traces_of(base)
    config = TINY.model_copy(update={"lora": TINY.lora.model_copy(update=change)})
    with pytest.raises(AdapterRefused, match=complaint):
        train_adapter(config, tiny_examples(), base, tmp_path / "on", start_from=start)
    assert torch.equal(logits_of(base), before) and traces_of(base) == traces
    assert not (tmp_path / "on").exists()


def test_a_start_with_another_dropout_is_taken(base: LoadedBase, tmp_path: Path, start: Path) -> None:
    config = TINY.model_copy(update={"lora": TINY.lora.model_copy(update={"dropout": 0.0})})
    train_adapter(config, tiny_examples(), base, tmp_path / "on", start_from=start)


def spoil_one_weight(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    next(iter(tensors.values()))[0, 0] = math.nan
    save_file(tensors, folder / WEIGHTS_FILE)


def drop_one_layer(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({name: t for name, t in tensors.items() if ".layers.1." not in name}, folder / WEIGHTS_FILE)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (spoil_one_weight, "not finite"),
        (drop_one_layer, "another base model"),
        (lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"torn"), f"{WEIGHTS_FILE}.*cannot be read"),
        (lambda folder: (folder / WEIGHTS_FILE).unlink(), f"{WEIGHTS_FILE}.*cannot be read"),
        (lambda folder: (folder / CONFIG_FILE).write_text("{"), f"{CONFIG_FILE}.*cannot be read"),
    ],
    ids=["nan", "another base", "torn", "lost", "config torn"],
)
def test_a_start_that_is_broken_is_refused_with_what_to_do_and_leaves_the_base_alone(
    base: LoadedBase, tmp_path: Path, start: Path, spoil: Callable[[Path], None], complaint: str
) -> None:
    before, traces = logits_of(base), traces_of(base)
    spoil(start)
    with pytest.raises(AdapterRefused, match=complaint) as refused:
        train_adapter(TINY, tiny_examples(), base, tmp_path / "on", start_from=start)
    assert "mode replay" in str(refused.value)
    assert torch.equal(logits_of(base), before)
    after = traces_of(base)
    after["attributes"] = sorted(set(after["attributes"]) - {"_require_grads_hooks"})
    assert after == traces


# ---- cancelled, diverged ---------------------------------------------------------------------------


def test_a_cancelled_run_stops_before_the_next_step_and_saves_no_adapter(
    base: LoadedBase, tmp_path: Path
) -> None:
    done: list[int] = []
    with pytest.raises(TrainingCancelled, match=r"at step 3 of \d+"):
        train_adapter(
            TINY,
            tiny_examples(),
            base,
            tmp_path,
            on_progress=lambda progress: done.append(progress.step),
            should_stop=lambda: len(done) == 3,
        )
    assert done == [1, 2, 3]
    assert not (tmp_path / "adapter").exists()


def test_poisoned_weights_stop_at_the_first_step(base: LoadedBase, tmp_path: Path) -> None:
    with torch.no_grad():
        base.model.get_input_embeddings().weight[:] = math.nan  # type: ignore[operator, union-attr, index]
    with pytest.raises(TrainingDiverged, match="nan at step 1") as stop:
        train_adapter(TINY, tiny_examples(), base, tmp_path)
    assert stop.value.step == 1 and math.isnan(stop.value.loss)


def test_a_gradient_that_is_not_a_number_in_the_last_step_saves_no_adapter(
    base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import loss

    mm = torch.mm

    def broken(*args: Any, **kwargs: Any) -> torch.Tensor:
        mm(*args, **kwargs)
        return kwargs["out"].fill_(math.nan)

    monkeypatch.setattr(loss.torch, "mm", broken)
    with pytest.raises(TrainingDiverged, match="no longer finite"):
        train_adapter(TINY.model_copy(update={"max_steps": 1}), tiny_examples(), base, tmp_path)
    assert not (tmp_path / "adapter").exists()


def test_a_rate_too_small_to_move_anything_is_refused(base: LoadedBase, tmp_path: Path) -> None:
    still = TINY.model_copy(update={"learning_rate": 1e-12, "epochs": 10})
    # The same mail over and over: no luck of the batch order can look like learning.
    same = [replace(tiny_examples(1)[0], id=f"m{n}") for n in range(12)]
    still = still.model_copy(update={"lora": LoraConfig(rank=4, alpha=8, dropout=0)})
    with pytest.raises(TrainingDiverged, match="did not fall"):
        train_adapter(still, same, base, tmp_path)


# ---- the real base ---------------------------------------------------------------------------------

REAL = TrainConfig(
    batch_tokens=192, learning_rate=2e-3, epochs=1, lora=LoraConfig(rank=8, alpha=16, dropout=0.05)
)


def encoded(base: LoadedBase, mails: list[Example], max_seq_tokens: int = 1024) -> list[EncodedExample]:
    return [encode(mail, base.tokenizer, max_seq_tokens) for mail in mails]


def test_training_learns_and_beats_the_base_on_mail_it_never_saw(smollm2: LoadedBase, tmp_path: Path) -> None:
    held_out = encoded(smollm2, persona_mails(4, first=100))
    losses: dict[str, list[MailLoss]] = {}

    def measure(model: Any) -> None:
        losses["adapter"] = held_out_losses(model, smollm2, held_out, REAL.batch_tokens)
        losses["base"] = held_out_losses(model, smollm2, held_out, REAL.batch_tokens, adapter=False)

    result = train_adapter(
        REAL, encoded(smollm2, persona_mails(18)), smollm2, tmp_path, after_training=measure
    )
    curve = [loss for _, loss in result.loss_curve]
    assert sum(curve[-3:]) / 3 < sum(curve[:3]) / 3 - 1
    assert mean_loss(losses["adapter"]) < mean_loss(losses["base"]) - 1


LAYERS = 3
"""Of SmolLM2's 30 in the float32 comparison: every kind of layer, a tenth of the time."""


def test_ten_steps_equal_plain_peft_and_adamw_in_float32(base_cache: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        precision="fp32",
        batch_tokens=200,
        epochs=4,
        max_steps=10,
        learning_rate=5e-4,
        weight_decay=0.01,
        schedule="cosine",
        lora=LoraConfig(rank=8, alpha=16, dropout=0.0),
    )
    base = load_base(find_base_model("smollm2-135m"), base_cache, config)
    keep_first_layers(base.model)
    examples = encoded(base, persona_mails(6))
    ours = train_adapter(config, examples, base, tmp_path / "ours")

    expected, weights = plain_peft_losses(config, examples, base_cache)
    assert len(expected) == 10
    assert max(len(batch) for batch in plan_epoch(examples, config.batch_tokens, config.seed)) > 1
    assert expected[-1] < expected[0]
    for (step, loss), reference in zip(ours.loss_curve, expected, strict=True):
        assert loss == pytest.approx(reference, abs=1e-3), step
    for name, tensor in load_file(Path(ours.adapter_dir) / "adapter_model.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=2e-4)


def keep_first_layers(model: Any) -> None:
    model.model.layers = model.model.layers[:LAYERS]
    model.config.num_hidden_layers = LAYERS


def plain_peft_losses(
    config: TrainConfig, examples: list[EncodedExample], cache: Path
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train as a textbook would: PEFT's layers, PyTorch's attention, full logits, AdamW on each factor."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(
        weights_path(find_base_model("smollm2-135m"), cache), dtype=torch.float32, attn_implementation="sdpa"
    )
    keep_first_layers(plain)
    torch.manual_seed(config.seed)
    model = get_peft_model(
        plain,
        PeftConfig(
            task_type="CAUSAL_LM",
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            lora_dropout=0.0,
            target_modules=list(config.lora.target_modules),
        ),
    ).train()
    factors = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(factors, lr=config.learning_rate, weight_decay=config.weight_decay)
    plan = [
        batch
        for epoch in range(config.epochs)
        for batch in plan_epoch(examples, config.batch_tokens, config.seed + epoch)
    ][: config.max_steps]
    losses = []
    for step, batch in enumerate(plan):
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * rate_factor(step, len(plan), config)
        chosen = [examples[index] for index in batch]
        longest = max(len(e.input_ids) for e in chosen)
        ids = torch.zeros(len(chosen), longest, dtype=torch.long)
        labels = torch.full((len(chosen), longest), -100)
        mask = torch.zeros(len(chosen), longest, dtype=torch.long)
        for row, e in enumerate(chosen):
            length = len(e.input_ids)
            ids[row, :length] = torch.tensor(e.input_ids)
            mask[row, :length] = 1
            labels[row, e.prompt_length : length] = torch.tensor(e.input_ids[e.prompt_length :])
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(factors, config.max_grad_norm)
        optimiser.step()
        losses.append(loss.item())
    return losses, get_peft_model_state_dict(model)


def test_an_absurd_learning_rate_is_called_diverged_with_its_step(
    smollm2: LoadedBase, tmp_path: Path
) -> None:
    absurd = REAL.model_copy(update={"learning_rate": 0.9, "batch_tokens": 128, "warmup_fraction": 0})
    with pytest.raises(TrainingDiverged, match="Lower learning_rate") as stop:
        train_adapter(absurd, encoded(smollm2, persona_mails(20)), smollm2, tmp_path)
    assert 0 < stop.value.step <= 20
    assert not (tmp_path / "adapter").exists()


def test_a_mail_of_23_000_words_is_cut_to_the_limit(smollm2: LoadedBase) -> None:
    long = Example(
        id="m",
        thread_id="t",
        instruction="Write a reply.",
        input="why so long " * 50,
        output="word " * 23_000,
    )
    (cut,) = encoded(smollm2, [long], 256)
    assert len(cut.input_ids) == 256
    assert cut.reply_length == 128


def test_four_bit_weights_train_on_this_machine(base_cache: Path, tmp_path: Path) -> None:
    config = REAL.model_copy(update={"quantise": "nf4", "max_steps": 3, "batch_tokens": 100})
    try:
        base = load_base(find_base_model("smollm2-135m"), base_cache, config)
    except (ImportError, RuntimeError, ValueError) as exc:
        pytest.skip(f"bitsandbytes cannot quantise here: {exc}")
    kinds = {type(module).__name__ for module in base.model.modules()}
    assert "Linear4bit" in kinds
    examples = encoded(base, persona_mails(3))
    before: list[float] = []
    result = train_adapter(
        config,
        examples,
        base,
        tmp_path,
        after_training=lambda model: before.extend(
            mean_loss(held_out_losses(model, base, examples[:1], 100, adapter=adapter))
            for adapter in (False, True)
        ),
    )
    assert result.steps == 3
    assert before[1] < before[0]
    tensors = load_file(Path(result.adapter_dir) / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())


# ---- the prompt of training is the prompt of serving -----------------------------------------------

TEXTS = (
    "hello",
    " hello",
    "Hello  world",
    "2026",
    "10,000.50",
    "1234567890",
    "Room 14b, 3rd floor",
    "v2.13.0-rc1",
    "don't",
    "I'LL we're you'd",
    "it’s “quoted” – dashed — so…",
    "naïve café Zoë Ångström",
    "Привет, как дела?",
    "你好，世界",
    "こんにちは",
    "مرحبا",
    "🙂👩‍👩‍👧 ok",
    "e\u0301 combining",
    "a\nb",
    "a\n\nb\n\n\nc",
    "trailing \n",
    "\n leading",
    "tab\tand  two spaces   three",
    "windows\r\nline",
    "\u00a0non-breaking\u2009thin",
    "def f(x):\n    return x ** 2  # ok\n",
    '{"key": [1, 2.5, null]}',
    "<html>&amp;</html>",
    "https://example.org/a?b=c&d=%20#e",
    "anna@example.org",
    "!!! ??? ... --- ***",
    "$1,299.99 (50%) #7",
    "ALLCAPS CamelCase snake_case",
    "<|im_start|>user\nhi<|im_end|>\n",
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCppServing]:
    gguf = find_base_model("smollm2-135m").gguf_path
    assert gguf is not None
    serving = LlamaCppServing(gguf, tmp_path_factory.mktemp("adapters"), context_tokens=512, threads=1)
    yield serving
    serving.close()


def test_training_and_serving_cut_text_into_the_same_tokens(
    base_cache: Path, engine: LlamaCppServing
) -> None:
    tokenizer = load_tokenizer(find_base_model("smollm2-135m"), base_cache)
    trained = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS}
    served = {text: list(engine.tokenize(text)) for text in TEXTS}
    assert trained == served


@pytest.mark.parametrize("context", ["", "When will you come?\n\n  Zoë & <b>2026</b>\n"])
def test_training_and_serving_write_the_same_prompt(
    base_cache: Path, engine: LlamaCppServing, context: str
) -> None:
    messages = prompt_messages("Write a reply to the email below, subject: 14", context)
    tokenizer = load_tokenizer(find_base_model("smollm2-135m"), base_cache)
    prompt = ChatTemplate.of(tokenizer).render(messages)
    assert prompt.encode() == engine.render(messages).encode()
    assert prompt == tokenizer.apply_chat_template(
        [m.to_json_dict() for m in messages], tokenize=False, add_generation_prompt=True
    )
    example = Example(
        id="m",
        thread_id="t",
        instruction="Write a reply to the email below, subject: 14",
        input=context,
        output="x",
    )
    trained = encode(example, tokenizer, 1024)
    assert list(trained.input_ids[: trained.prompt_length]) == list(engine.tokenize(prompt))
