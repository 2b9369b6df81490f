"""Train one LoRA adapter on one person's examples. Read `train_adapter` top to bottom.

The base is loaded once (`load_base`) and serves any number of `train_adapter` calls one after another;
each leaves the base as it found it.
"""

from __future__ import annotations

import ctypes
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from training import attention, base_models
from training.config import TrainConfig
from training.dataset import EncodedExample
from training.errors import ConfigError, TrainingCancelled, TrainingDiverged
from training.lora_linear import speed_up
from training.loss import reply_cross_entropy
from training.schemas import TrainingProgress, TrainingResult
from training.start_adapter import digest_of, load_weights, read_start_adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

CHECKPOINT_FILE = "state.pt"
GIVE_BACK_EVERY_STEPS = 8
EXPLODED = 2.0
"""Nat above the first steps' mean loss at which training counts as diverged: the loss of a usable base on
mail is 2–4 nat per token, uniform guessing over 49,152 tokens is 10.8."""


@dataclass(frozen=True)
class LoadedBase:
    """A base model in memory, ready for adapters."""

    info: base_models.BaseModel
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    device: torch.device


def load_base(info: base_models.BaseModel, cache: Path, config: TrainConfig) -> LoadedBase:
    """Load the base's weights, frozen, on the best device there is.

    Side effect: the first use of a GGUF base writes its weights into `cache`. Raises ConfigError when the
    weights cannot be had.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    options: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": "sdpa" if device.type == "cuda" else attention.register(),
    }
    if config.quantise == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if device.type == "cuda":
        options["device_map"] = "auto"
    try:
        weights = base_models.weights_path(info, cache)
        model = AutoModelForCausalLM.from_pretrained(weights, revision=info.revision, **options)
        tokenizer = base_models.load_tokenizer(info, cache)
    except OSError as exc:
        raise ConfigError(
            f"The weights of {info.id} cannot be loaded ({type(exc).__name__}). Check the disk, the network "
            "and, for a gated model, HF_TOKEN; then retry the job."
        ) from exc
    model.config.use_cache = False
    model.requires_grad_(False)
    return LoadedBase(info, model, tokenizer, device)


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
    """Train an adapter on `examples` and save it as PEFT safetensors in `out_dir`/adapter.

    `on_checkpoint` is called after each checkpoint is written. `after_training` is called with the finished
    model while it is still in memory (held-out losses). A
    checkpoint in `out_dir`/checkpoint is resumed when it was made by the same configuration and examples.
    `start_from` is a folder of PEFT files whose weights training goes on from, instead of a fresh adapter.

    Raises:
        TrainingDiverged: the loss became NaN, exploded, or did not fall over the whole run.
        TrainingCancelled: `should_stop` said so; it is asked before every step.
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
        speed_up(model)
        if config.gradient_checkpointing:
            base.model.activation_checkpointing_enable()
        model.train()

        batches = [
            plan_epoch(examples, config.batch_tokens, config.seed + epoch) for epoch in range(config.epochs)
        ]
        plan = [batch for epoch in batches for batch in epoch]
        steps = min(len(plan), config.max_steps or len(plan))
        if start is not None:
            load_weights(model, start)
        weights = _FlatParameters(model)
        # One fp32 master vector and one fused AdamW over it (Loshchilov & Hutter 2019, decoupled decay):
        # bf16 weights alone lose updates smaller than 2^-8 of themselves at these rates.
        optimiser = torch.optim.AdamW(
            [weights.master], lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        state = _RunState(out_dir / "checkpoint", fingerprint(config, examples, base.info, start_digest))
        first_step = state.resume(weights, optimiser)

        started = saved = time.monotonic()
        session_tokens = 0
        for step in range(first_step, steps):
            if should_stop is not None and should_stop():
                raise TrainingCancelled(f"Training was cancelled at step {step} of {steps}.")
            batch = [examples[index] for index in plan[step]]
            optimiser.param_groups[0]["lr"] = config.learning_rate * rate_factor(step, steps, config)
            loss = _step(model, base, batch, weights, optimiser, config.max_grad_norm)
            state.losses.append(loss)
            _stop_if_diverged(state.losses)
            session_tokens += sum(len(example.input_ids) for example in batch)
            now = time.monotonic()
            if now - saved >= config.checkpoint_every_s and step + 1 < steps:
                state.save(step + 1, session_tokens, now - started, weights, optimiser)
                if on_checkpoint is not None:
                    on_checkpoint()
                saved = now
            if step % GIVE_BACK_EVERY_STEPS == 0:
                _give_back_memory()
            if on_progress is not None:
                rate = session_tokens / (now - started)
                left = sum(
                    len(examples[index].input_ids) for later in plan[step + 1 : steps] for index in later
                )
                on_progress(
                    TrainingProgress(
                        step=step + 1,
                        steps=steps,
                        epoch=(step + 1) / max(1, len(batches[0])),
                        loss=loss,
                        tokens=state.tokens + session_tokens,
                        tokens_per_second=rate,
                        eta_seconds=left / rate,
                    )
                )
        if start is None:
            # An adapter that knows the voice starts near its floor: flat is no failure, and the gate judges.
            _stop_if_flat(state.losses)
        _stop_if_broken(weights.master, state.losses)
        seconds = state.seconds + time.monotonic() - started
        tokens = state.tokens + session_tokens

        if first_step == steps:
            # Killed between the last step and the end: nothing to train, everything to save.
            tokens, seconds = state.tokens, max(state.seconds, 1e-9)
        else:
            state.save(steps, session_tokens, time.monotonic() - started, weights, optimiser)
        _save_adapter(model, out_dir / "adapter")
        model.eval()
        if after_training is not None:
            after_training(model)
        return TrainingResult(
            adapter_dir=str(out_dir / "adapter"),
            steps=steps,
            epochs=steps / max(1, len(batches[0])),
            train_tokens=tokens,
            train_seconds=seconds,
            train_tokens_per_second=tokens / seconds,
            final_train_loss=_mean(state.losses[-max(1, steps // 10) :]),
            loss_curve=tuple(enumerate(state.losses, start=1)),
            trainable_parameters=weights.master.numel(),
            peak_memory_bytes=peak_memory_bytes(base.device),
            device=device_name(base.device),
            resumed_from_step=first_step,
        )
    finally:
        restore_base(model, base)


def restore_base(model: PeftModel, base: LoadedBase) -> None:
    """Take the adapter off, so that the base is what it was for the next job of the cohort."""
    model.unload()  # type: ignore[no-untyped-call, operator]
    if base.model.is_activation_checkpointing:
        base.model.activation_checkpointing_disable()
        base.model.disable_input_require_grads()
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        if attribute in base.model.__dict__:
            delattr(base.model, attribute)
    base.model.requires_grad_(False)
    base.model.eval()


def plan_epoch(examples: Sequence[EncodedExample], batch_tokens: int, seed: int) -> list[list[int]]:
    """Return batches of example indices: similar lengths together, at most `batch_tokens` with padding.

    Lengths are jittered by up to 10 % before sorting, so that each epoch mixes differently; the order of
    the batches is shuffled. A single example longer than the budget is a batch of its own.
    """
    chance = random.Random(seed)
    order = sorted(
        range(len(examples)), key=lambda i: len(examples[i].input_ids) * (1 + 0.1 * chance.random())
    )
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        length = len(examples[index].input_ids)
        longest = max(longest, length)
        if batches and longest * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = length
    chance.shuffle(batches)
    return batches


def rate_factor(step: int, steps: int, config: TrainConfig) -> float:
    """Return the share of the peak learning rate at `step` (from 0): linear warm-up, then the schedule."""
    warmup = max(1, round(steps * config.warmup_fraction)) if config.warmup_fraction else 0
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    if config.schedule == "linear":
        return 1 - done
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0


def pad_batch(
    batch: Sequence[EncodedExample], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids `(rows, longest)` padded on the right, and, for every reply token, the row and column of
    the position that predicts it and the token itself, each `(reply tokens,)`."""
    longest = max(len(example.input_ids) for example in batch)
    ids = torch.zeros((len(batch), longest), dtype=torch.long)
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for row, example in enumerate(batch):
        length = len(example.input_ids)
        ids[row, :length] = torch.tensor(example.input_ids)
        rows += [row] * example.reply_length
        columns += range(example.prompt_length - 1, length - 1)
        targets += example.input_ids[example.prompt_length :]
    return ids.to(device), torch.tensor(rows), torch.tensor(columns), torch.tensor(targets, device=device)


def reply_hidden_states(
    model: PeftModel, base: LoadedBase, batch: Sequence[EncodedExample]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the decoder and return, per reply token, the hidden state that predicts it `(tokens, width)`,
    the token `(tokens,)` and its row in the batch `(tokens,)`."""
    ids, rows, columns, targets = pad_batch(batch, base.device)
    decoder = model.get_base_model().get_decoder()
    hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state
    return hidden[rows.to(hidden.device), columns.to(hidden.device)], targets.to(hidden.device), rows


def fingerprint(
    config: TrainConfig,
    examples: Sequence[EncodedExample],
    info: base_models.BaseModel,
    start_digest: str | None = None,
) -> str:
    """Return what a checkpoint must match to be resumed: the base, the adapter that training went on from,
    the recipe and the exact token ids."""
    import hashlib

    digest = hashlib.sha256(config.model_dump_json(exclude={"checkpoint_every_s", "name"}).encode())
    # Two bases may share a tokenizer (Llama-3.1-8B and -70B do), so the token ids do not tell them apart.
    digest.update(repr((info.id, info.revision)).encode())
    digest.update((start_digest or "").encode())
    for example in examples:
        digest.update(repr((example.input_ids, example.prompt_length)).encode())
    return digest.hexdigest()


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory this process (CPU) or its GPUs (CUDA) ever held, in bytes."""
    if device.type == "cuda":
        return sum(torch.cuda.max_memory_allocated(n) for n in range(torch.cuda.device_count()))
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_name(device: torch.device) -> str:
    """Return the GPU's product name, or `cpu (<n> threads)`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)"


def _step(
    model: PeftModel,
    base: LoadedBase,
    batch: Sequence[EncodedExample],
    weights: _FlatParameters,
    optimiser: torch.optim.Optimizer,
    max_grad_norm: float,
) -> float:
    """Do one optimiser step; returns the mean loss per reply token before it, in nat."""
    hidden, targets, _ = reply_hidden_states(model, base, batch)
    output = base.model.get_output_embeddings()
    loss = reply_cross_entropy(hidden, output.weight, targets) / max(1, len(targets))  # type: ignore[union-attr, arg-type]
    loss.backward()  # type: ignore[no-untyped-call]
    weights.update(optimiser, max_grad_norm)
    return float(loss.detach())


class _FlatParameters:
    """All adapter parameters as views of one vector in the model's precision, with an fp32 master copy.

    Sizes: a rank-16 adapter on all linear layers of SmolLM2-135M is 4,884,480 numbers.
    """

    def __init__(self, model: PeftModel) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.working = torch.cat([p.detach().reshape(-1) for p in parameters])
        self.gradient = torch.zeros_like(self.working)
        self.master = self.working.float().requires_grad_(True)
        start = 0
        for parameter in parameters:
            stop = start + parameter.numel()
            parameter.data = self.working[start:stop].view_as(parameter)
            parameter.grad = self.gradient[start:stop].view_as(parameter)
            start = stop

    def update(self, optimiser: torch.optim.Optimizer, max_grad_norm: float) -> None:
        """Clip by global norm (Pascanu et al. 2013), step on the master, refresh the working copy."""
        self.master.grad = self.gradient.float()
        torch.nn.utils.clip_grad_norm_([self.master], max_grad_norm)
        optimiser.step()
        self.copy_to_working()
        self.gradient.zero_()

    @torch.no_grad()
    def copy_to_working(self) -> None:
        self.working.copy_(self.master)


class _RunState:
    """What must survive a crash: master weights, optimiser, random state, losses, tokens and seconds."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.losses: list[float] = []
        self.tokens = 0
        """Tokens trained on before this session."""
        self.seconds = 0.0

    def resume(self, weights: _FlatParameters, optimiser: torch.optim.Optimizer) -> int:
        """Load the checkpoint when it fits; returns the step to go on from, 0 without one."""
        path = self.folder / CHECKPOINT_FILE
        if not path.is_file():
            return 0
        try:
            saved = torch.load(path, map_location=weights.master.device, weights_only=True)
        except Exception:
            # Torn or foreign file: starting over is always right, only slower.
            return 0
        if not isinstance(saved, dict) or saved.get("fingerprint") != self.fingerprint:
            return 0
        with torch.no_grad():
            weights.master.copy_(saved["master"])
        weights.copy_to_working()
        optimiser.load_state_dict(saved["optimiser"])
        torch.set_rng_state(saved["random_state"].cpu())
        self.losses = list(saved["losses"])
        self.tokens, self.seconds = saved["tokens"], saved["seconds"]
        return int(saved["step"])

    def save(
        self,
        step: int,
        session_tokens: int,
        session_seconds: float,
        weights: _FlatParameters,
        optimiser: torch.optim.Optimizer,
    ) -> None:
        """Write the checkpoint beside the old one and rename over it, so that one is always whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / CHECKPOINT_FILE
        with _written_aside(path) as aside:
            torch.save(
                {
                    "fingerprint": self.fingerprint,
                    "step": step,
                    "master": weights.master.detach(),
                    "optimiser": optimiser.state_dict(),
                    "random_state": torch.get_rng_state(),
                    "losses": self.losses,
                    "tokens": self.tokens + session_tokens,
                    "seconds": self.seconds + session_seconds,
                },
                aside,
            )


@contextmanager
def _written_aside(path: Path) -> Iterator[Path]:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        with aside.open("rb") as handle:
            os.fsync(handle.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


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


def _stop_if_diverged(losses: Sequence[float]) -> None:
    loss = losses[-1]
    if not math.isfinite(loss):
        raise TrainingDiverged(
            f"The loss became {loss} at step {len(losses)}. Lower learning_rate and train again.",
            step=len(losses),
            loss=loss,
        )
    if len(losses) >= 8 and _mean(losses[-4:]) > _mean(losses[:4]) + EXPLODED:
        raise TrainingDiverged(
            f"The loss rose from {_mean(losses[:4]):.2f} to {_mean(losses[-4:]):.2f} nat per token by step "
            f"{len(losses)} (limit: +{EXPLODED:g}). Lower learning_rate and train again.",
            step=len(losses),
            loss=loss,
        )


def _stop_if_flat(losses: Sequence[float]) -> None:
    """A run of 20 steps or more whose last quarter is no lower than its first has learnt nothing."""
    quarter = len(losses) // 4
    if len(losses) >= 20 and _mean(losses[-quarter:]) >= _mean(losses[:quarter]):
        raise TrainingDiverged(
            f"The loss did not fall: {_mean(losses[:quarter]):.2f} nat per token at the start, "
            f"{_mean(losses[-quarter:]):.2f} at the end of {len(losses)} steps. learning_rate is too low to "
            "learn or too high to settle: change it and train again.",
            step=len(losses),
            loss=losses[-1],
        )


def _stop_if_broken(weights: torch.Tensor, losses: Sequence[float]) -> None:
    """The last step's own update is seen by no later loss."""
    if not torch.isfinite(weights).all():
        raise TrainingDiverged(
            f"The weights are no longer finite after step {len(losses)}, the last one. "
            "Lower learning_rate and train again.",
            step=len(losses),
            loss=losses[-1],
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
