"""Train one LoRA adapter on one person's examples. Read `train_adapter` top to bottom.

The base is loaded once (training.loaded_base) and serves any number of `train_adapter` calls one after
another; each leaves the base as it found it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from training.config import TrainConfig
from training.dataset import EncodedExample
from training.errors import ConfigError
from training.loaded_base import LoadedBase, restore_base
from training.run import Run
from training.schemas import TrainingProgress, TrainingResult
from training.speed_up import speed_up
from training.start_adapter import digest_of, load_weights, read_start_adapter
from training.termination import saved_when_told_to_end

if TYPE_CHECKING:
    from peft import PeftModel


def train_adapter(
    config: TrainConfig,
    examples: Sequence[EncodedExample],
    base: LoadedBase,
    out_dir: Path,
    *,
    on_progress: Callable[[TrainingProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    after_training: Callable[[PeftModel], None] | None = None,
    on_checkpoint: Callable[[], None] | None = None,
    start_from: Path | None = None,
) -> TrainingResult:
    """Train an adapter on `examples` (in time order) and save it as PEFT safetensors in `out_dir`/adapter.

    Some threads are set aside as a validation slice where there are enough of them: training ends when they
    no longer gain, and the weights that were best on them are saved, of a step or the mean of many.
    `on_checkpoint` is called after each checkpoint is written. `after_training` is called with the finished
    model while it is still in memory (held-out losses). A checkpoint in `out_dir`/checkpoint is resumed when
    it was made by the same configuration and examples, and ends with the adapter of an uninterrupted run. One
    is written every `checkpoint_every_s` or `checkpoint_every_steps`, and when the process is told to end.
    `start_from` is a folder of PEFT files whose weights training goes on from, instead of a fresh adapter.

    Raises:
        TrainingDiverged: the loss became NaN, exploded, or did not fall over the whole run; with a validation
            slice, its loss.
        TrainingCancelled: `should_stop` said so; it is asked before every step and before every batch of the
            validation slice.
        ConfigError: there are no examples.
        AdapterRefused: `start_from` is torn, not finite, or of another shape than `config.lora`.
    """
    if not examples:
        raise ConfigError("There are no examples to train on; an adapter needs at least 1.")
    start = None if start_from is None else read_start_adapter(start_from, config.lora)
    model = _attach_adapter(config, base)
    try:
        masks = speed_up(model)
        if base.recomputes(config):
            base.model.activation_checkpointing_enable()
        model.train()
        if start is not None:
            load_weights(model, start)
        run = Run(
            config,
            examples,
            model,
            base,
            masks,
            out_dir,
            start_digest=None if start_from is None else digest_of(start_from),
            should_stop=should_stop,
            on_checkpoint=on_checkpoint,
        )
        with saved_when_told_to_end(run.save_checkpoint):
            while True:
                run.look()
                if run.is_over:
                    break
                run.stop_if_asked()
                run.step()
                run.save_if_due()
                if on_progress is not None:
                    on_progress(run.progress())
            run.look_at_mean()
        run.finish()
        _save_adapter(model, out_dir / "adapter")
        model.eval()
        if after_training is not None:
            after_training(model)
        return run.result(out_dir / "adapter")
    finally:
        restore_base(model, base)


def _attach_adapter(config: TrainConfig, base: LoadedBase) -> PeftModel:
    """Put a fresh adapter on the base; its weights follow from the seed."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(config.seed)
    return get_peft_model(  # type: ignore[return-value]
        base.model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,  # type: ignore[arg-type]  # PEFT multiplies floats just as well
            lora_dropout=config.lora.dropout,
            target_modules=list(config.lora.target_modules),
            use_rslora=config.lora.use_rslora,
        ),
        autocast_adapter_dtype=False,
    )


def _save_adapter(model: PeftModel, folder: Path) -> None:
    """Save the PEFT files, whole or not at all."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(str(aside))
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
