"""Training speed and memory on one mailbox: ours, TRL's SFTTrainer and plain PEFT, taking turns.

Every run is a process of its own that gets the same token ids. A token counts once, as prompt or reply of a
mail, and padding never does; seconds are those of the training steps, the first of which warms up and does
not count (tests/benchmarks/step_clock.py). Trainers:

    ours         training.lora.train_adapter, preset configs/train/default.yaml, one epoch of it; started as
                 the GPU worker starts it, with tcmalloc where that is installed
    ours_system  the same with the system's allocator, where tcmalloc is installed
    trl_best     SFTTrainer in the fastest CPU configuration that was found: bf16 weights, 8 mails a step,
                 grouped by length, no gradient checkpointing, tcmalloc where it is installed,
                 and "eager" or "sdpa" attention, whichever is faster in one run of each before the rounds
    trl_default  SFTTrainer with bf16 weights and SFTConfig's own defaults, gradient checkpointing among them
    peft_bf16    transformers and PEFT in a plain loop over our batches, padded; bf16 weights
    peft_fp32    the same with fp32 weights

All have the LoRA of the preset and the loss on whole replies (a job masks third persons; TRL cannot be told).
Speed on a shared machine drifts, so each run of another trainer has a run of ours just before it, and what is
compared is that pair. Peak memory depends on the longest mails that a run meets, so two TRL runs of a few
steps may differ in it.

The roof: with frozen weights a token costs 2 N FLOP forward and 2 N backward (no weight gradients), where N
counts the weights that it is multiplied with, output matrix included; attention and the adapter are left out.
The peak is the best bf16 matrix product measured before and after the rounds (tests/benchmarks/gemm.py).
"""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from tests.benchmarks.child import Report, run_child
from tests.benchmarks.mailboxes import find_mailbox
from tests.benchmarks.train_data import CACHE, request_for
from training.allocator import VARIABLE, allocator_environment, find_allocator

TITLE = "Training"
MAILBOX = "david"
BASE_MODEL = "smollm2-135m"
PRESET = "default"
ROUNDS = 2
"""Of four pairs each: 8 minutes on two quiet cores."""
TRL_STEPS = 8
"""Optimiser steps of one TRL run: a multiple of 4, because its length grouping sorts 4 batches at a time,
longest first, and any other number would measure the long mails more. 64 mails take 20 to 50 s."""
CHOICE_STEPS = 4
"""Of one run that only chooses the attention."""
PEFT_STEPS = 8
QUICK_STEPS = 3
OTHERS = ("trl_best", "trl_default", "peft_bf16", "peft_fp32", "ours_system")
NAMES = {
    "ours": "ours",
    "ours_system": "ours with the system's memory allocator",
    "trl_best": "TRL, best CPU configuration",
    "trl_default": "TRL, its defaults with bf16 weights",
    "peft_bf16": "PEFT in a plain loop, bf16",
    "peft_fp32": "PEFT in a plain loop, fp32",
}
INSTALL_TRL = ".venv/bin/pip install --constraint constraints.txt --editable '.[bench]'"


def measure(work: Path, quick: bool, report: Report, rounds: int | None = None) -> dict[str, Any]:
    """Run the pairs in turn, `rounds` times, and compare within each pair."""
    mailbox = find_mailbox(MAILBOX)
    has_trl = importlib.util.find_spec("trl") is not None
    others = [name for name in OTHERS if _is_possible(name, has_trl)]
    turns = [name for other in others for name in ("ours", other)] * (1 if quick else rounds or ROUNDS)
    steps_ahead = len(turns) + 4

    def at(before: float, name: str) -> Report:
        return lambda done, total, text: report(before + done / total, steps_ahead, f"{name}: {text}")

    request = request_for(mailbox, BASE_MODEL, PRESET, work, work / CACHE)
    data = run_child("tests.benchmarks.train_data", request, at(0, "data"))
    gemm = [run_child("tests.benchmarks.gemm", {}, at(1, "matrix products"))]
    attention, choice = (
        choose_attention(work, quick, at(2, "choosing TRL's attention")) if has_trl else (None, {})
    )
    runs = []
    for number, trainer in enumerate(turns):
        runs.append(
            {"trainer": trainer, **run(trainer, work, quick, at(3 + number, NAMES[trainer]), attention)}
        )
    gemm.append(run_child("tests.benchmarks.gemm", {}, at(3 + len(turns), "matrix products")))
    return {
        "mailbox": mailbox.name,
        "base_model": BASE_MODEL,
        "preset": PRESET,
        "examples": data["examples"],
        "tokens_per_epoch": data["tokens"],
        "gemm": max(gemm, key=lambda found: float(found["peak_flops"])),
        "trl_attention": choice,
        **compare(runs),
        **roofline(max(float(found["peak_flops"]) for found in gemm), runs),
        "runs": runs,
        **({} if has_trl else {"trl_missing": f"TRL is not installed. {INSTALL_TRL}"}),
    }


def run(trainer: str, work: Path, quick: bool, report: Report, attention: str | None) -> dict[str, Any]:
    """Run one trainer once in a child of its own; returns its figures."""
    if trainer.startswith("ours"):
        return run_ours(work, quick, report, {} if trainer == "ours_system" else allocator_environment({}))
    if trainer.startswith("peft"):
        request = {
            "work": str(work),
            "preset": PRESET,
            "precision": trainer.removeprefix("peft_"),
            "steps": QUICK_STEPS if quick else PEFT_STEPS,
        }
        return run_child("tests.benchmarks.train_peft", request, report)
    steps = QUICK_STEPS if quick else TRL_STEPS
    if trainer == "trl_default":
        return run_trl(work, steps, report, attention=None)
    return run_trl(work, steps, report, attention=attention or "eager")


def run_ours(work: Path, quick: bool, report: Report, environment: dict[str, str]) -> dict[str, Any]:
    """Run our trainer on the one mailbox; returns its figures."""
    request = {
        "people": [{"name": MAILBOX, "work": str(work)}],
        "cache": str(work / CACHE),
        "base_model": BASE_MODEL,
        "preset": PRESET,
        "epochs": 1,
        "max_steps": QUICK_STEPS if quick else None,
    }
    figures = run_child("tests.benchmarks.train_ours", request, report, environment)
    (person,) = figures.pop("people")
    return {**figures, **person}


def run_trl(work: Path, steps: int, report: Report, *, attention: str | None) -> dict[str, Any]:
    """Run SFTTrainer in its best configuration with this attention, or with its defaults when it is None."""
    environment = allocator_environment({}) if attention else {}
    request = {
        "work": str(work),
        "preset": PRESET,
        "steps": steps,
        "defaults": attention is None,
        "attention": attention,
        "sampling": "group_by_length",
    }
    figures = run_child("tests.benchmarks.train_trl", request, report, environment)
    return {**figures, "allocator": environment.get(VARIABLE, "the system's")}


def choose_attention(work: Path, quick: bool, report: Report) -> tuple[str, dict[str, float]]:
    """Return the faster of TRL's attentions on this machine, and the tokens a second of each."""
    steps = QUICK_STEPS if quick else CHOICE_STEPS
    rates = {
        name: run_trl(work, steps, report, attention=name)["tokens_per_second"] for name in ("sdpa", "eager")
    }
    return max(rates, key=lambda name: rates[name]), rates


def _is_possible(trainer: str, has_trl: bool) -> bool:
    if trainer == "ours_system":
        return find_allocator() is not None  # else it is what "ours" is
    return has_trl or not trainer.startswith("trl")


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return per trainer its mean tokens a second and highest peak memory, and what ours is of each other:
    the median over the pairs of a run and the run of ours just before it."""
    by_trainer: dict[str, dict[str, float]] = {}
    for trainer in dict.fromkeys(run["trainer"] for run in runs):
        own = [run for run in runs if run["trainer"] == trainer]
        by_trainer[trainer] = {
            "tokens_per_second": round(fmean(run["tokens_per_second"] for run in own), 1),
            "peak_rss_bytes": max(run["peak_rss_bytes"] for run in own),
        }
    pairs: dict[str, list[float]] = {}
    for ours, other in pairwise(runs):
        if ours["trainer"] == "ours" != other["trainer"]:
            ratio = ours["tokens_per_second"] / other["tokens_per_second"]
            pairs.setdefault(other["trainer"], []).append(round(ratio, 2))
    peak = by_trainer["ours"]["peak_rss_bytes"]
    return {
        "trainers": by_trainer,
        "ours_to": {
            trainer: {
                "tokens_per_second": round(median(ratios), 2),
                "each_pair": ratios,
                "peak_rss_bytes": round(peak / by_trainer[trainer]["peak_rss_bytes"], 2),
            }
            for trainer, ratios in pairs.items()
        },
    }


def roofline(peak_flops: float, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the tokens a second that the peak allows, and each trainer's share of it."""
    parameters = next(run["parameters"] for run in runs if run["trainer"] == "ours")
    roof = peak_flops / (4 * parameters)
    shares: dict[str, dict[str, float]] = {}
    for trainer in dict.fromkeys(run["trainer"] for run in runs):
        own = [run for run in runs if run["trainer"] == trainer]
        shares[trainer] = {
            kind: round(fmean(run[f"{kind}_per_second"] for run in own) / roof, 3)
            for kind in ("tokens", "fed_tokens")
        }
    return {
        "roofline": {
            "peak_flops": peak_flops,
            "parameters": parameters,
            "tokens_per_second": round(roof, 1),
            "shares": shares,
        }
    }


def table(figures: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the Markdown table, header first."""
    head = f"{figures['base_model']} on {figures['mailbox']}: {figures['examples']} mails"
    rows = [
        [head, "tokens/s", "each run", "of the roof", "fed tokens, of the roof", "peak memory", "ours is"]
    ]
    for trainer, mean in figures["trainers"].items():
        each = [run["tokens_per_second"] for run in figures["runs"] if run["trainer"] == trainer]
        ratio, share = figures["ours_to"].get(trainer), figures["roofline"]["shares"][trainer]
        rows.append(
            [
                NAMES[trainer],
                f"{mean['tokens_per_second']:,.0f}",
                ", ".join(f"{rate:,.0f}" for rate in each),
                f"{share['tokens']:.0%}",
                f"{share['fed_tokens']:.0%}",
                f"{mean['peak_rss_bytes'] / 1e9:.2f} GB",
                f"{ratio['tokens_per_second']:.1f}x as fast "
                f"({', '.join(f'{one:.1f}' for one in ratio['each_pair'])}), "
                f"{ratio['peak_rss_bytes']:.2f}x the memory"
                if ratio
                else "",
            ]
        )
    if "trl_missing" in figures:
        rows.append([figures["trl_missing"], *[""] * (len(rows[0]) - 1)])
    return rows


def notes(figures: dict[str, Any]) -> list[str]:
    """Return the paragraphs under the table."""
    roof, gemm = figures["roofline"], figures["gemm"]
    said = [
        "Tokens are those of the mails, prompt and reply, each once. What ours is, is the median over "
        "pairs of neighbouring runs (each in brackets); memory is the highest of all runs.",
        f"The roof is {roof['tokens_per_second']:,.0f} tokens/s = peak / (4 N): "
        f"{roof['peak_flops'] / 1e9:,.0f} GFLOP/s, the best bf16 matrix product measured in the same run "
        f"with {gemm['threads']} threads, and 4 FLOP (2 forward, 2 backward; the base is frozen) for each "
        f"of N = {roof['parameters'] / 1e6:.1f} million weights, output matrix included. Ours computes "
        "what all prompts of a step begin with once, and so is fed fewer tokens than the mails hold: real "
        "tokens/s say how soon an adapter is ready, fed tokens how well the processor is used. Padding "
        "makes others' fed tokens more than the real ones.",
    ]
    trl = next((run for run in figures["runs"] if run["trainer"] == "trl_best"), None)
    if trl is not None:
        rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in figures["trl_attention"].items())
        default = next(run for run in figures["runs"] if run["trainer"] == "trl_default")
        said.append(
            f"TRL's best here: {trl['mails_per_step']} mails a step grouped by length, no gradient "
            f"checkpointing, memory allocator {trl['allocator']}, {trl['attention']} attention (tokens/s "
            f"in one run of each: {rates}). Its defaults: {default['mails_per_step']} mails a step, "
            f"{default['sampling']} order, gradient checkpointing "
            f"{'on' if default['gradient_checkpointing'] else 'off'}, {default['attention']} attention."
        )
    return said
