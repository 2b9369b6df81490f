"""Training speed and memory on one mailbox: ours against TRL's SFTTrainer, taking turns.

Every run is a process of its own that gets the same token ids. A token counts once, as prompt or reply of a
mail, and padding never does; seconds are those of the training steps, the first of which warms up and does
not count (tests/benchmarks/step_clock.py). Trainers:

    ours       training.lora.train_adapter, preset configs/train/default.yaml, one epoch of it
    trl_plain  SFTTrainer and a PEFT LoraConfig: bf16 weights, 8 mails a step, loss on replies, random order
    trl_best   the same in the fastest CPU configuration that was found: mails grouped by length, "eager"
               attention (the backward pass of fused attention is slow on CPU), tcmalloc where it is installed

Peak memory depends on the longest mails that a run meets, so two TRL runs of a few steps may differ in it.
Gradient checkpointing is off for all; TRL's own default, on, needs less memory and is slower.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
from pathlib import Path
from statistics import fmean
from typing import Any

from tests.benchmarks.child import Report, run_child
from tests.benchmarks.mailboxes import find_mailbox

TITLE = "Training"
MAILBOX = "david"
BASE_MODEL = "smollm2-135m"
PRESET = "default"
ROUNDS = 2
TRL_STEPS = 8
"""Optimiser steps of one TRL run: a multiple of 4, because its length grouping sorts 4 batches at a time,
longest first, and any other number would measure the long mails more. 64 mails take 20 to 50 s."""
NAMES = {"ours": "ours", "trl_plain": "TRL, plain bf16", "trl_best": "TRL, best CPU configuration"}
INSTALL_TRL = ".venv/bin/pip install --constraint constraints.txt --editable '.[bench]'"


def measure(work: Path, quick: bool, report: Report) -> dict[str, Any]:
    """Run the trainers in turn, `ROUNDS` times, and compare their mean rates."""
    mailbox = find_mailbox(MAILBOX)
    trainers = ["ours", "trl_plain", "trl_best"] if importlib.util.find_spec("trl") else ["ours"]
    turns = trainers * (1 if quick else ROUNDS)
    data = run_child(
        "tests.benchmarks.train_data",
        {
            "name": mailbox.name,
            "path": str(mailbox.path),
            "owner": mailbox.owner,
            "base_model": BASE_MODEL,
            "preset": PRESET,
            "work": str(work),
        },
        lambda done, total, text: report(0, len(turns), text),
    )
    runs = []
    for number, trainer in enumerate(turns):

        def on_progress(done: float, total: float, text: str, before: int = number) -> None:
            report(before + done / total, len(turns), f"{NAMES[turns[before]]}: {text}")

        runs.append({"trainer": trainer, **_run(trainer, work, quick, on_progress)})
    return {
        "mailbox": mailbox.name,
        "base_model": BASE_MODEL,
        "preset": PRESET,
        "examples": data["examples"],
        "tokens_per_epoch": data["tokens"],
        **compare(runs),
        "runs": runs,
        **({} if len(trainers) > 1 else {"trl_missing": f"TRL is not installed. {INSTALL_TRL}"}),
    }


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return per trainer its mean tokens a second and highest peak memory, and what ours is of each TRL."""
    by_trainer: dict[str, dict[str, float]] = {}
    for trainer in dict.fromkeys(run["trainer"] for run in runs):
        own = [run for run in runs if run["trainer"] == trainer]
        by_trainer[trainer] = {
            "tokens_per_second": round(fmean(run["tokens_per_second"] for run in own), 1),
            "peak_rss_bytes": max(run["peak_rss_bytes"] for run in own),
        }
    ours = by_trainer["ours"]
    return {
        "trainers": by_trainer,
        "ours_to": {
            trainer: {key: round(ours[key] / other[key], 2) for key in ours}
            for trainer, other in by_trainer.items()
            if trainer != "ours"
        },
    }


def table(figures: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the Markdown table, header first."""
    head = f"{figures['base_model']} on {figures['mailbox']}: {figures['examples']} mails"
    rows = [[head, "tokens/s", "each run", "peak memory", "ours is"]]
    for trainer, mean in figures["trainers"].items():
        each = [run["tokens_per_second"] for run in figures["runs"] if run["trainer"] == trainer]
        ratio = figures["ours_to"].get(trainer)
        rows.append(
            [
                NAMES[trainer],
                f"{mean['tokens_per_second']:,.0f}",
                ", ".join(f"{rate:,.0f}" for rate in each),
                f"{mean['peak_rss_bytes'] / 1e9:.2f} GB",
                f"{ratio['tokens_per_second']:.1f}x as fast, {ratio['peak_rss_bytes']:.2f}x the memory"
                if ratio
                else "",
            ]
        )
    if "trl_missing" in figures:
        rows.append([figures["trl_missing"], "", "", "", ""])
    return rows


def _run(trainer: str, work: Path, quick: bool, report: Report) -> dict[str, Any]:
    if trainer == "ours":
        request = {"work": str(work), "base_model": BASE_MODEL, "preset": PRESET, "quick": quick}
        return run_child("tests.benchmarks.train_ours", request, report)
    best = trainer == "trl_best"
    allocator = ctypes.util.find_library("tcmalloc_minimal") if best else None
    request = {
        "work": str(work),
        "preset": PRESET,
        "sampling": "group_by_length" if best else "random",
        "attention": "eager" if best else "sdpa",
        "steps": 3 if quick else TRL_STEPS,
    }
    environment = {"LD_PRELOAD": allocator} if allocator else None
    figures = run_child("tests.benchmarks.train_trl", request, report, environment)
    return {**figures, "allocator": allocator or "system"}
