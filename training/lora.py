"""Train one LoRA adapter on one person's examples. Read `train_adapter` top to bottom.

The base is loaded once (training.loaded_base) and serves any number of `train_adapter` calls one after
another; each leaves the base as it found it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from training.checkpoint import RunState, fingerprint
from training.config import TrainConfig
from training.dataset import EncodedExample
from training.device import peak_memory_bytes
from training.early_stop import EarlyStop, validation_loss
from training.errors import ConfigError, TrainingCancelled
from training.flat_parameters import FlatParameters
from training.forward import reply_hidden_states
from training.loaded_base import LoadedBase, restore_base
from training.loss import reply_cross_entropy
from training.optimiser import make_optimiser
from training.plan import looks_of, plan_epoch, rate_factor, split_validation
from training.schemas import TrainingProgress, TrainingResult
from training.speed_up import speed_up
from training.start_adapter import digest_of, load_weights, read_start_adapter
from training.step_losses import StepLosses
from training.termination import saved_when_told_to_end, uninterrupted
from training.watch import (
    mean,
    stop_if_broken,
    stop_if_diverged,
    stop_if_flat,
    stop_if_useless,
    stop_if_validation_diverged,
)

if TYPE_CHECKING:
    from peft import PeftModel

GIVE_BACK_EVERY_STEPS = 8


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

    The newest threads are set aside as a validation slice where there are enough of them: training ends when
    they no longer gain, and the weights that were best on them are saved.
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
    from peft import LoraConfig, get_peft_model

    if not examples:
        raise ConfigError("There are no examples to train on; an adapter needs at least 1.")
    start = None if start_from is None else read_start_adapter(start_from, config.lora)
    start_digest = None if start_from is None else digest_of(start_from)
    torch.manual_seed(config.seed)
    model = get_peft_model(
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
    try:
        masks = speed_up(model)
        if base.recomputes(config):
            base.model.activation_checkpointing_enable()
        model.train()

        split = split_validation(examples, config)
        batches = [
            plan_epoch(split.train, config.batch_tokens, config.seed + epoch, packing=config.packing)
            for epoch in range(config.epochs)
        ]
        plan = [batch for epoch in batches for batch in epoch]
        steps = min(len(plan), config.max_steps or len(plan))
        looks = looks_of(batches, steps) if split.validation else frozenset()
        if start is not None:
            load_weights(model, start)
        weights = FlatParameters(model)
        # The optimiser steps on one fp32 master vector: bf16 weights alone lose updates smaller than 2^-8 of
        # themselves at these rates.
        optimiser = make_optimiser(weights.master, config)
        early = EarlyStop(config.patience, config.min_delta)
        state = RunState(
            out_dir / "checkpoint", fingerprint(config, examples, base.info, start_digest), early
        )
        first_step = state.resume(weights, optimiser)
        losses = StepLosses(state.losses, late=base.device.type == "cuda")
        tokens_before = state.tokens
        started = saved_at = time.monotonic()

        def save_checkpoint() -> None:
            losses.catch_up()
            state.save(time.monotonic() - started, weights, optimiser)
            if on_checkpoint is not None:
                on_checkpoint()

        def stop_if_asked() -> None:
            if should_stop is not None and should_stop():
                raise TrainingCancelled(f"Training was cancelled at step {state.step} of {steps}.")

        with saved_when_told_to_end(save_checkpoint):
            while True:
                # Looked at before a step, not after it: a run that is resumed makes up for a look it missed.
                if early.is_due(state.step, looks):
                    losses.catch_up()
                    nll = validation_loss(model, base, split.validation, config.batch_tokens, stop_if_asked)
                    with uninterrupted():
                        early.look(state.step, nll, weights)
                    stop_if_validation_diverged(early.curve, state.losses)
                if state.step == steps or early.is_over:
                    break
                stop_if_asked()
                batch = [split.train[index] for index in plan[state.step]]
                optimiser.param_groups[0]["lr"] = config.learning_rate * rate_factor(
                    state.step, steps, config
                )
                masks.renew(len(batch) * max(len(e.input_ids) for e in batch), base.model.dtype)
                loss = _loss_and_gradient(model, base, batch)
                with uninterrupted():
                    weights.update(optimiser, config.max_grad_norm)
                    losses.add(loss)
                    state.step_done(sum(len(example.input_ids) for example in batch))
                stop_if_diverged(state.losses)
                now = time.monotonic()
                if state.step < steps and (
                    now - saved_at >= config.checkpoint_every_s
                    or (state.step - first_step) % (config.checkpoint_every_steps or steps) == 0
                ):
                    save_checkpoint()
                    saved_at = now
                if state.step % GIVE_BACK_EVERY_STEPS == 0:
                    _give_back_memory()
                if on_progress is not None:
                    rate = (state.tokens - tokens_before) / (now - started)
                    left = sum(
                        len(split.train[index].input_ids)
                        for later in plan[state.step : steps]
                        for index in later
                    )
                    on_progress(
                        TrainingProgress(
                            step=state.step,
                            steps=steps,
                            epoch=state.step / max(1, len(batches[0])),
                            loss=losses.read[-1],
                            tokens=state.tokens,
                            tokens_per_second=rate,
                            eta_seconds=left / rate,
                        )
                    )
        losses.catch_up()
        if state.losses:
            stop_if_diverged(state.losses)
        done = state.step
        seconds = state.seconds + time.monotonic() - started
        if start is None and early.curve:
            # A run that max_steps cuts short (a smoke test) has not had its chance.
            if done < steps or steps == len(plan):
                stop_if_useless(early.curve, state.losses, config.min_delta)
        elif start is None:
            # An adapter that knows the voice starts near its floor: flat is no failure, and the gate judges.
            stop_if_flat(state.losses)
        stop_if_broken(weights.master, state.losses)
        if first_step == done:
            # Killed between the last step and the end: nothing to train, everything to save.
            seconds = max(state.seconds, 1e-9)
        else:
            state.save(time.monotonic() - started, weights, optimiser)
        early.put_best(weights)
        _save_adapter(model, out_dir / "adapter")
        model.eval()
        if after_training is not None:
            after_training(model)
        return TrainingResult(
            adapter_dir=str(out_dir / "adapter"),
            steps=done,
            epochs=done / max(1, len(batches[0])),
            train_tokens=state.tokens,
            train_seconds=seconds,
            train_tokens_per_second=state.tokens / seconds,
            final_train_loss=mean(state.losses[-max(1, done // 10) :]),
            loss_curve=tuple(enumerate(state.losses, start=1)),
            trainable_parameters=weights.master.numel(),
            peak_memory_bytes=peak_memory_bytes(base.device),
            device=base.device_name,
            resumed_from_step=first_step,
            earlier_seconds=state.seconds,
            best_step=early.best_step if early.curve else done,
            stopped_early=done < steps,
            stop_reason=early.describe(done, len(plan), split.reason),
            validation_emails=len(split.validation),
            validation_curve=tuple(early.curve),
        )
    finally:
        restore_base(model, base)


def _loss_and_gradient(model: PeftModel, base: LoadedBase, batch: Sequence[EncodedExample]) -> torch.Tensor:
    """Run one batch forward and backward; returns its mean loss per reply token in nat, on the device.

    Nothing in here may wait for a GPU (tests/gpu/test_cuda.py): no `float()`, `.item()` or plain `.to()`.
    """
    hidden, targets, _ = reply_hidden_states(model, base, batch, with_masked=False)
    output = base.model.get_output_embeddings()
    loss = reply_cross_entropy(hidden, output.weight, targets) / max(1, len(targets))  # type: ignore[union-attr, arg-type]
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _save_adapter(model: PeftModel, folder: Path) -> None:
    """Save the PEFT files, whole or not at all."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(str(aside))
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def _give_back_memory() -> None:
    """Return freed memory to the system where the C library keeps it (glibc's `malloc_trim`).

    Batches of changing shape leave holes: without this the process grew from 2.3 GB in the first epoch to
    2.8 GB in the third on the same mails, live memory unchanged.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
