"""What training will take, before it starts: tokens, seconds, dollars; and how far off that was afterwards.

Seconds are the device's: from the moment it begins with the job to its adapter, which is what is paid for.
A base's first training on a device is guessed from configs/base_models.yaml; from then on what was measured
there counts, each number as the median of the newest runs (one slow run on a busy machine changes nothing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from training.base_models import BaseModel
from training.config import NOT_IN_RECIPE, RETIRED, TrainConfig
from training.precision import processor_has_bf16
from training.schemas import Estimate, Example, Job, MeasuredRun

CHARACTERS_PER_TOKEN = 4.0
"""First guess: English prose under a 49k byte-pair vocabulary, 4.0–4.4 on the public mailboxes."""
TEMPLATE_TOKENS = 36
"""System message and chat markup that every prompt carries."""
FIXED_SECONDS = 25.0
"""First guess: imports, base load, held-out losses and export (measured on 2 CPU cores)."""
FP32_SHARE = 0.25
"""First guess: what is left of a processor's rate without bfloat16 instructions. Guessed for this machine's
processor, which is the one that trains in the local stack."""
NEWEST_RUNS = 5
_SAME_VOICE = NOT_IN_RECIPE | RETIRED | {"base_model", "data", "mode", "seed"}
"""Fields of a preset that change neither the speed of training nor when it ends."""


@dataclass(frozen=True)
class Rates:
    """What a device does with a base model; the fields' defaults are first guesses."""

    tokens_per_second: float
    fixed_seconds: float = FIXED_SECONDS
    tokens_per_character: float = 1 / CHARACTERS_PER_TOKEN
    epochs_share: float = 1.0
    """Epochs trained of those configured: what an early stop leaves."""
    tokens_per_step: float | None = None
    device: str = ""
    runs: int = 0
    """Runs that these are the medians of; 0: guessed."""


def rates_of(base: BaseModel, config: TrainConfig, device: str, runs: Sequence[MeasuredRun]) -> Rates:
    """Return the rates of `runs` on `device`, newest first, or first guesses when there are none.

    Runs of the same preset count alone where there are any: precision, rank and batch decide the speed.
    """
    own = [run for run in runs if _training_of(run.config) == _training_of(config.model_dump(mode="json"))]
    chosen = (own or list(runs))[:NEWEST_RUNS]
    if not chosen:
        on_gpu = device and not device.startswith("cpu")
        on_cpu = base.cpu_tokens_per_second * (1.0 if processor_has_bf16() else FP32_SHARE)
        return Rates(base.gpu_tokens_per_second if on_gpu else on_cpu, device=device)
    loads = [run.load_seconds for run in chosen if run.load_seconds > 0]
    whole = [run for run in chosen if run.config.get("max_steps") is None and run.config.get("epochs")]
    return Rates(
        tokens_per_second=median(run.train_tokens / run.train_seconds for run in chosen),
        # The jobs of a cohort share one load: it is measured by itself, and a lone job has it.
        fixed_seconds=(median(loads) if loads else 0.0)
        + median(max(0.0, run.device_seconds - run.train_seconds - run.load_seconds) for run in chosen),
        tokens_per_character=median(
            [ratio for run in chosen if (ratio := _tokens_per_character(run))] or [1 / CHARACTERS_PER_TOKEN]
        ),
        epochs_share=min(1.0, median([run.epochs / run.config["epochs"] for run in whole] or [1.0])),
        tokens_per_step=median([run.train_tokens / run.steps for run in chosen]) if own else None,
        device=device,
        runs=len(chosen),
    )


def estimate_training(
    examples: Sequence[Example], config: TrainConfig, rates: Rates, hourly_price: float
) -> Estimate:
    """Estimate one training of `examples` at a device's rates (prompt + reply tokens a second)."""
    per_epoch = len(examples) * TEMPLATE_TOKENS + rates.tokens_per_character * characters_of(examples, config)
    tokens = per_epoch * config.epochs * (rates.epochs_share if config.max_steps is None else 1)
    if config.max_steps is not None:
        tokens = min(tokens, config.max_steps * (rates.tokens_per_step or config.batch_tokens))
    seconds = rates.fixed_seconds + tokens / rates.tokens_per_second
    return Estimate(
        seconds=round(seconds, 1),
        tokens=round(tokens),
        cost=round(seconds / 3600 * hourly_price, 4),
        tokens_per_second=round(rates.tokens_per_second, 1),
        device=rates.device,
        measured_runs=rates.runs,
    )


def characters_of(examples: Sequence[Example], config: TrainConfig) -> int:
    """Return the characters of all prompts and replies, without what exceeds `max_seq_tokens` by far."""
    longest = round((config.max_seq_tokens - TEMPLATE_TOKENS) * CHARACTERS_PER_TOKEN)
    return sum(min(len(e.instruction) + len(e.input) + len(e.output), longest) for e in examples)


def estimate_error(job: Job) -> float | None:
    """Return by which share of what it really took the job's estimate was too high (negative: too low).

    None while the training is not finished, or for a job from before this was measured.
    """
    took = job.metrics.device_seconds
    return None if not took or job.estimated_seconds is None else job.estimated_seconds / took - 1


def describe_estimate(job: Job) -> str:
    """Say what a job was estimated to take and took, for people; empty before there is an estimate."""
    if job.estimated_seconds is None:
        return ""
    error = estimate_error(job)
    if error is None:
        return f"estimated {job.estimated_seconds:.0f} s"
    way = "too much" if error > 0 else "too little"
    return (
        f"estimated {job.estimated_seconds:.0f} s, took {job.metrics.device_seconds:.0f} s "
        f"({abs(error):.0%} {way})"
    )


def _training_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return what tells one preset's trainings from another's; what was chosen for a mailbox does not."""
    found = {key: value for key, value in config.items() if key not in _SAME_VOICE}
    chosen = (config.get("chosen") or {}).get("fields", ())
    lora = {key: value for key, value in found.pop("lora", {}).items() if f"lora.{key}" not in chosen}
    return {key: value for key, value in found.items() if key not in chosen} | {"lora": lora}


def _tokens_per_character(run: MeasuredRun) -> float | None:
    """Return the run's ratio, or None when it cannot be told; the template's tokens are counted apart."""
    if not run.epochs or not run.characters:
        return None
    ratio = (run.train_tokens / run.epochs - run.examples * TEMPLATE_TOKENS) / run.characters
    return ratio if ratio > 0 else None
