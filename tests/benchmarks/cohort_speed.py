"""Adapters an hour: ours for cohorts of one, four and eight people, and TRL with one process a person.

    warm     one process trains everybody, one after another, with a thread per core; the base is loaded once
    pinned   one single-threaded trainer per core, everybody dealt to them by tokens
    TRL      one process a person, one after another, in its best CPU configuration (see train.py)

The cohort of three mailboxes is trained to the end (the preset's epochs, without early stop), in both ways.
In the others the same mailboxes repeat, everybody takes a few steps, and the whole is calculated: what a
process spends outside steps as measured, then everybody's tokens at everybody's own rate. TRL is calculated
in the same way from a few steps a person; with `--full-trl` it trains all of them.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.benchmarks.child import Report, run_child
from tests.benchmarks.machine import OthersWatch
from tests.benchmarks.mailboxes import find_mailbox
from tests.benchmarks.step_clock import seconds_for
from tests.benchmarks.train import BASE_MODEL, PRESET, TRL_STEPS, choose_attention, run_trl
from tests.benchmarks.train_data import CACHE, request_for
from training.allocator import allocator_environment
from training.errors import OwnvoiceError

TITLE = "Adapters an hour"
MAILBOXES = ("david", "pereira-s", "dasovich-j")
WHOLE = len(MAILBOXES)
COHORTS = (1, 4, 8)
FEW_STEPS = 6
"""Of each person in a cohort that is calculated: 10 s or less."""
QUICK_STEPS = 3
SPARING = "sdpa"
"""The attention that TRL gets where the faster one ends for want of memory."""
WAYS = {"warm": "one warm process", "pinned": "one trainer per core"}

Person = dict[str, Any]
"""`name`, `work` (the folder of its token ids), `tokens` of all epochs, `examples`."""


def measure(work: Path, quick: bool, report: Report, full_trl: bool = False) -> dict[str, Any]:
    """Train the cohorts in both ways, and each mailbox with TRL."""
    from training.config import load_train_config

    epochs = load_train_config(PRESET).epochs
    has_trl = importlib.util.find_spec("trl") is not None
    sizes = [*COHORTS, WHOLE]
    turns = len(MAILBOXES) + len(sizes) * len(WAYS) + (len(MAILBOXES) + 1) * has_trl
    turn = 0

    def next_turn(name: str) -> Report:
        nonlocal turn
        before, turn = turn, turn + 1
        return lambda done, total, text: report(before + done / total, turns, f"{name}: {text}")

    people = [_prepare(name, work, epochs, next_turn(name)) for name in MAILBOXES]
    cohorts = []
    for size in sizes:
        members = [people[number % len(people)] for number in range(size)]
        steps = QUICK_STEPS if quick else None if size == WHOLE else FEW_STEPS
        ways = {
            way: run_way(way, members, work, epochs, steps, next_turn(f"{size} people, {WAYS[way]}"))
            for way in WAYS
        }
        cohorts.append({"people": size, "ways": ways})
    figures: dict[str, Any] = {
        "base_model": BASE_MODEL,
        "preset": PRESET,
        "epochs": epochs,
        "mailboxes": [{key: person[key] for key in ("name", "examples", "tokens")} for person in people],
        "cohorts": cohorts,
    }
    if has_trl:
        attention, _ = choose_attention(
            work / people[0]["name"], quick, next_turn("choosing TRL's attention")
        )
        figures["trl"] = [
            run_trl_person(person, quick, full_trl, attention, next_turn(f"TRL, {person['name']}"))
            for person in people
        ]
    return {**figures, **compare(figures)}


def deal(members: Sequence[Person], hands: int) -> list[list[Person]]:
    """Deal people to trainers so that tokens come out even: the longest first, each to the emptiest hand."""
    dealt: list[list[Person]] = [[] for _ in range(min(hands, len(members)))]
    for person in sorted(members, key=lambda one: -int(one["tokens"])):
        min(dealt, key=lambda hand: sum(one["tokens"] for one in hand)).append(person)
    return dealt


def run_way(
    way: str, members: Sequence[Person], work: Path, epochs: int, steps: int | None, report: Report
) -> dict[str, Any]:
    """Train the cohort in one way; `steps` of each person, or all when it is None. Returns its figures."""
    cores = _cores()
    hands = [list(members)] if way == "warm" else deal(members, len(cores))
    done = [0.0] * len(hands)

    def train(number: int) -> dict[str, Any]:
        def on_progress(part: float, total: float, text: str) -> None:
            done[number] = part / total
            report(sum(done), len(hands), text)

        request = {
            "people": [{"name": person["name"], "work": person["work"]} for person in hands[number]],
            "cache": str(work / CACHE),
            "base_model": BASE_MODEL,
            "preset": PRESET,
            "epochs": epochs,
            "max_steps": steps,
            "threads": len(cores) if way == "warm" else 1,
            "core": cores[number] if way == "pinned" and hasattr(os, "sched_setaffinity") else None,
        }
        environment = {"OMP_NUM_THREADS": str(request["threads"]), **allocator_environment({})}
        started = time.monotonic()
        figures = run_child("tests.benchmarks.train_ours", request, on_progress, environment)
        return {**figures, "process_seconds": round(time.monotonic() - started, 2)}

    others, started = OthersWatch(), time.monotonic()
    with ThreadPoolExecutor(len(hands)) as pool:
        trainers = list(pool.map(train, range(len(hands))))
    wall = time.monotonic() - started
    for trainer in trainers:
        # To each trainer its neighbour of the same cohort is a stranger; all of them are ours.
        del trainer["others_share"]
    whole = max(whole_seconds(trainer, hand) for trainer, hand in zip(trainers, hands, strict=True))
    seconds = wall if steps is None else whole
    return {
        "trainers": trainers,
        "measured_to_the_end": steps is None,
        "wall_seconds": round(wall, 1),
        "seconds": round(seconds, 1),
        "calculated_seconds": round(whole, 1),
        "adapters_per_hour": round(3600 * len(members) / seconds, 1),
        "peak_rss_bytes": sum(trainer["peak_rss_bytes"] for trainer in trainers),
        "others_share": others.share(),
    }


def whole_seconds(trainer: dict[str, Any], members: Sequence[Person]) -> float:
    """Return how long a trainer's process takes for all epochs of its people: what it spent outside steps, as
    measured, and each one's tokens at the rate of the steps that were measured."""
    people = trainer["people"]
    in_steps = sum(person["first_step_seconds"] + person["seconds"] for person in people)
    ahead = sum(
        seconds_for(measured, person["tokens"]) for measured, person in zip(people, members, strict=True)
    )
    return float(trainer["process_seconds"] - in_steps + ahead)


def run_trl_person(person: Person, quick: bool, full: bool, attention: str, report: Report) -> dict[str, Any]:
    """Train one person with TRL in a process of its own; returns figures with the `seconds` of all epochs."""
    epoch_steps = -(-person["examples"] // 8)
    steps = QUICK_STEPS if quick else person["epochs"] * epoch_steps if full else TRL_STEPS
    started = time.monotonic()
    try:
        figures = run_trl(Path(person["work"]), steps, report, attention=attention)
    except OwnvoiceError:
        if attention == SPARING:
            raise
        # Eager attention keeps every layer's scores: 8 mails of 1,024 tokens take more than 20 GB.
        started = time.monotonic()
        figures = run_trl(Path(person["work"]), steps, report, attention=SPARING)
    wall = time.monotonic() - started
    to_the_end = full and not quick
    trained = {"process_seconds": round(wall, 2), "people": [figures]}
    seconds = wall if to_the_end else whole_seconds(trained, [person])
    return {
        **figures,  # its `seconds` are those of the steps that were done
        "name": person["name"],
        "process_seconds": round(wall, 2),
        "seconds": round(seconds, 1),
        "measured_to_the_end": to_the_end,
    }


def compare(figures: dict[str, Any]) -> dict[str, Any]:
    """Return per cohort the faster way and, where TRL was measured, TRL's adapters an hour and the ratio."""
    by_name = {one["name"]: one["seconds"] for one in figures.get("trl", ())}
    names = [mailbox["name"] for mailbox in figures["mailboxes"]]
    compared = []
    for cohort in figures["cohorts"]:
        size, ways = cohort["people"], cohort["ways"]
        _, best = max((figure["adapters_per_hour"], way) for way, figure in ways.items())
        row: dict[str, Any] = {"people": size, "faster_way": best}
        if by_name:
            trl = 3600 * size / sum(by_name[names[number % len(names)]] for number in range(size))
            row["trl_adapters_per_hour"] = round(trl, 1)
            row["ours_to_trl"] = round(ways[best]["adapters_per_hour"] / trl, 2)
        compared.append(row)
    return {"compared": compared}


def table(figures: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the Markdown table, header first."""
    rows = [
        ["cohort", *(f"{text}, adapters/hour" for text in WAYS.values()), "TRL, adapters/hour", "ours is"]
    ]
    for cohort, row in zip(figures["cohorts"], figures["compared"], strict=True):
        ways = cohort["ways"]
        to_the_end = all(way["measured_to_the_end"] for way in ways.values())
        rows.append(
            [
                f"{cohort['people']}{', trained to the end' if to_the_end else ', calculated'}",
                *(
                    f"{ways[way]['adapters_per_hour']:.0f} ({ways[way]['seconds']:,.0f} s, "
                    f"{ways[way]['peak_rss_bytes'] / 1e9:.1f} GB)"
                    for way in WAYS
                ),
                f"{row['trl_adapters_per_hour']:.0f}" if "trl_adapters_per_hour" in row else "not installed",
                f"{row['ours_to_trl']:.1f}x as fast" if "ours_to_trl" in row else "",
            ]
        )
    return rows


def notes(figures: dict[str, Any]) -> list[str]:
    """Return the paragraphs under the table."""
    mailboxes = "; ".join(
        f"{one['name']}: {one['examples']} mails, {one['tokens']:,} tokens" for one in figures["mailboxes"]
    )
    said = [
        f"{figures['epochs']} epochs without early stop ({mailboxes}, all epochs). Seconds and "
        "adapters/hour hold everything from the start of the first process to the last adapter saved. "
        "Calculated: each person takes a few steps, and the rest is that person's tokens at the rate "
        "measured, on top of the measured time outside steps; the mailboxes repeat in cohorts of more "
        "than three.",
    ]
    checked = [
        f"{WAYS[name]} {way['seconds']:,.0f} s, calculated {way['calculated_seconds']:,.0f} s"
        for cohort in figures["cohorts"]
        for name, way in cohort["ways"].items()
        if way["measured_to_the_end"]
    ]
    if checked:
        said.append(f"The cohort of three from its own rates: {'; '.join(checked)}.")
    if trl := figures.get("trl"):
        each = ", ".join(f"{one['name']} {one['seconds']:,.0f} s" for one in trl)
        how = (
            "trained to the end"
            if all(one["measured_to_the_end"] for one in trl)
            else f"calculated from {trl[0]['steps'] + 1} steps each and the measured time outside steps"
        )
        attentions = ", ".join(dict.fromkeys(one["attention"] for one in trl))
        said.append(
            f"TRL, one process a person, {attentions} attention (the slower one where the faster one ended "
            f"for want of memory): {each}; {how}."
        )
    return said


def _prepare(name: str, work: Path, epochs: int, report: Report) -> Person:
    folder = work / name
    request = request_for(find_mailbox(name), BASE_MODEL, PRESET, folder, work / CACHE)
    data = run_child("tests.benchmarks.train_data", request, report)
    return {
        "name": name,
        "work": str(folder),
        "examples": data["examples"],
        "epochs": epochs,
        "tokens": epochs * data["tokens"],
    }


def _cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
