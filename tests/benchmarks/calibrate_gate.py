"""Calibrate the gate on real mailboxes: what a person's own mail and other people's mail measure.

    python -m tests.benchmarks.calibrate_gate                          prints JSON and Markdown
    python -m tests.benchmarks.calibrate_gate --out docs/quality.md    also writes its tables
    python -m tests.benchmarks.calibrate_gate --write-sigma            recomputes configs/style_sigma.yaml

Needs no model: half a minute of one core. What needs one (trained adapters, the base's outputs) is in
`python -m tests.benchmarks.quality --only gate`. A threshold is good when a person's own unseen mail passes
it nearly always and another person's mail nearly never. Numbers only leave this script, never text.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.mailboxes import SHARED, Mailbox, read_sent
from training.config import CONFIGS, DataConfig
from training.dataset import prepare
from training.harm import Generation, count_copies, find_leaks, most_repeats
from training.panel import read_panel
from training.salutation import greeting_class, learn_names, sign_off_class, strip_identity, total_variation
from training.schemas import Example
from training.style import Profile, profiles, sigma_of, style_distance
from training.voice import fit_judge

MAILBOXES = ("david", "dasovich-j", "pereira-s", "wh-emmett-l", "wh-cerda-j", "fossum-d")
OUTPUTS = 24
"""Texts that the gate judges an adapter by."""
STYLE_MAILS = 25
DRAWS = 400
SEED = 17
OWN_MAILS = (20, 40, 80)
HEADING = "## Gate calibration"

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Person:
    """A real mailbox after cleaning, split as training splits it."""

    name: str
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    names: frozenset[str]

    @property
    def texts(self) -> list[str]:
        return [example.output for example in (*self.train, *self.held_out)]


def read_person(name: str) -> Person:
    """Read the newest 500 mails of a real mailbox, as a job does."""
    mails = read_sent(Mailbox(name, SHARED / f"{name}.jsonl"))[-DataConfig().max_mails :]
    prepared = prepare(mails, DataConfig())
    texts = [example.output for example in (*prepared.train, *prepared.held_out)]
    return Person(name, prepared.train, prepared.held_out, learn_names(texts))


def measure(people: Sequence[Person]) -> Numbers:
    """Return all figures, by mailbox."""
    panel = [text for persona in read_panel() for text in persona.texts]
    names = frozenset().union(*(person.names for person in people))
    styles = {p.name: profiles([strip_identity(text, names) for text in p.texts]) for p in people}
    return {
        person.name: {
            "mails": len(person.texts),
            "train": len(person.train),
            "held_out": len(person.held_out),
            "judge": _judge(person, people, panel, names),
            "style": _style(person.name, styles),
            "guards": _guards(person),
            "harm": _harm(person),
        }
        for person in people
    }


def _judge(person: Person, people: Sequence[Person], panel: Sequence[str], names: frozenset[str]) -> Numbers:
    """Fit on own training mail against the panel; score own held-out mail and that of people it never saw."""
    own = [example.output for example in person.held_out]
    others = [e.output for other in people if other is not person for e in other.held_out]

    def scores(train: Sequence[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        judge = fit_judge(train, panel, [], names=names)
        return np.array(judge.score(own)), np.array(judge.score(others))

    train = [example.output for example in person.train]
    own_scores, other_scores = scores(train)
    curve = {}
    for size in OWN_MAILS:
        if size <= len(train):
            fewer_own, fewer_others = scores(train[-size:])
            curve[size] = _auc(fewer_own, fewer_others)
    draws = np.random.default_rng(SEED).integers(len(own_scores), size=(DRAWS, OUTPUTS))
    means = own_scores[draws].mean(axis=1)
    return {
        "own": float(own_scores.mean()),
        "others": float(other_scores.mean()),
        "auc": _auc(own_scores, other_scores),
        "auc_by_own_mails": curve,
        # What sampling 24 texts alone does to a mean, half the width of 90 %.
        "noise_of_24": float((np.quantile(means, 0.95) - np.quantile(means, 0.05)) / 2),
    }


def _style(name: str, styles: dict[str, Profile]) -> Numbers:
    chance = np.random.default_rng(SEED)
    own = styles[name]
    others = [style for other, style in styles.items() if other != name]
    own_own, own_other, own_train = [], [], []
    for draw in range(DRAWS):
        order = chance.permutation(len(own))
        first, second = own[order[:STYLE_MAILS]], own[order[STYLE_MAILS : 2 * STYLE_MAILS]]
        own_own.append(style_distance(first, second))
        other = others[draw % len(others)]
        own_other.append(style_distance(first, other[chance.permutation(len(other))[:STYLE_MAILS]]))
        # As the gate does it: 24 texts against all the training mail.
        own_train.append(style_distance(own[order[:OUTPUTS]], own[order[OUTPUTS:]]))
    return {
        "own_own": _quantiles(own_own),
        "own_other": _quantiles(own_other),
        "p_other_above_own": _auc(np.array(own_other), np.array(own_own)),
        "own_24_to_train": _quantiles(own_train),
    }


def _guards(person: Person) -> Numbers:
    """What 24 of the person's own mails would make of the guards, against the rest of them."""
    texts = person.texts
    words = np.array([len(text.split()) for text in texts])
    greetings, sign_offs = [greeting_class(t) for t in texts], [sign_off_class(t) for t in texts]
    ratios, greeting, sign_off = [], [], []
    for order in _splits(len(texts)):
        some, rest = order[:OUTPUTS], order[OUTPUTS:]
        ratios.append(float(np.median(words[some]) / np.median(words[rest])))
        greeting.append(total_variation([greetings[i] for i in some], [greetings[i] for i in rest]))
        sign_off.append(total_variation([sign_offs[i] for i in some], [sign_offs[i] for i in rest]))
    return {
        "length_ratio": _quantiles(ratios),
        "greeting_variation": _quantiles(greeting),
        "sign_off_variation": _quantiles(sign_off),
    }


def _harm(person: Person) -> Numbers:
    """What would be held against the person's own held-out mail: false alarms of the hard checks, in 24."""
    train = [example.output for example in person.train]
    outputs = [
        Generation(prompt=f"{e.instruction}\n\n{e.input}", text=e.output, stopped=True)
        for e in person.held_out
    ]
    per_24 = OUTPUTS / max(len(outputs), 1)
    return {
        "copies_in_24": count_copies(outputs, train) * per_24,
        "leaks_in_24": sum(map(bool, find_leaks(outputs, train))) * per_24,
        "repeating_in_24": sum(most_repeats(output.text) > 3 for output in outputs) * per_24,
    }


def _splits(size: int) -> list[Any]:
    chance = np.random.default_rng(SEED)
    return [chance.permutation(size) for _ in range(DRAWS)]


def _quantiles(values: Sequence[float]) -> Numbers:
    found = np.quantile(values, (0.05, 0.5, 0.95))
    return dict(zip(("p05", "p50", "p95"), map(float, found), strict=True))


def _auc(high: np.ndarray[Any, Any], low: np.ndarray[Any, Any]) -> float:
    apart = high[:, None] - low[None, :]
    return float(((apart > 0) + 0.5 * (apart == 0)).mean())


# ---- the page --------------------------------------------------------------------------------------


def to_markdown(figures: Numbers) -> str:
    """Return the tables of the section, without its heading and without the reasons."""

    def table(head: Sequence[str], row: Callable[[Numbers], Sequence[str]]) -> list[str]:
        return [
            "| mailbox | " + " | ".join(head) + " |",
            "|---|" + "--:|" * len(head),
            *(f"| {name} | " + " | ".join(row(of)) + " |" for name, of in figures.items()),
            "",
        ]

    def three(quantiles: Numbers) -> str:
        return f"{quantiles['p05']:.2f} · **{quantiles['p50']:.2f}** · {quantiles['p95']:.2f}"

    return "\n".join(
        [
            "Authorship judge, fitted on own training mail against the invented panel (no base outputs), "
            "greeting, sign-off and names removed; scored on own held-out mail and on the held-out mail of "
            "the other five, whom it never saw:",
            "",
            *table(
                ("train", "held out", "P(own), own", "others", "AUC", "AUC with 20 · 40 · 80", "± of 24"),
                lambda of: (
                    str(of["train"]),
                    str(of["held_out"]),
                    f"{of['judge']['own']:.2f}",
                    f"{of['judge']['others']:.2f}",
                    f"{of['judge']['auc']:.3f}",
                    " · ".join(f"{value:.2f}" for value in of["judge"]["auc_by_own_mails"].values()),
                    f"{of['judge']['noise_of_24']:.3f}",
                ),
            ),
            f"Style distance, {DRAWS} draws; 5 % · **median** · 95 %:",
            "",
            *table(
                ("own–own, 25 mails", "own–other, 25 mails", "P(other > own)", "24 own to the rest"),
                lambda of: (
                    three(of["style"]["own_own"]),
                    three(of["style"]["own_other"]),
                    f"{of['style']['p_other_above_own']:.3f}",
                    three(of["style"]["own_24_to_train"]),
                ),
            ),
            "Guards and false alarms: 24 own mails against the rest: length, total variation (harm: own "
            "held-out mail as if an adapter had written it, per 24):",
            "",
            *table(
                ("length ratio", "greetings", "sign-offs", "copies", "leaks", "repeating"),
                lambda of: (
                    three(of["guards"]["length_ratio"]),
                    three(of["guards"]["greeting_variation"]),
                    three(of["guards"]["sign_off_variation"]),
                    f"{of['harm']['copies_in_24']:.1f}",
                    f"{of['harm']['leaks_in_24']:.1f}",
                    f"{of['harm']['repeating_in_24']:.1f}",
                ),
            ),
        ]
    )  # fmt: skip


def write_section(path: Path, tables: str, marker: str = "<!-- tables of calibrate_gate -->") -> None:
    """Replace the tables in the section of `path`; what is written around them by hand stays."""
    page = path.read_text(encoding="utf-8") if path.is_file() else "# Quality\n"
    if HEADING not in page:
        page = f"{page.rstrip()}\n\n{HEADING}\n\n{marker}\n{marker}\n"
    before, _, after = page.partition(marker)
    _, _, after = after.partition(marker)
    path.write_text(f"{before}{marker}\n{tables.rstrip()}\n{marker}{after}", encoding="utf-8")


def write_sigma() -> None:
    """Recompute the spread of the style features from the invented personas."""
    personas = read_panel()
    names = frozenset().union(*(persona.names for persona in personas))
    table = sigma_of([text for persona in personas for text in persona.texts], names)
    head = (
        "# Spread of each style feature from mail to mail (standard deviation), in the order of\n"
        "# training/style.py. From the invented personas in samples/personas; no text, and nobody's mail.\n"
        "# Use:      read by training.style.load_sigma for every style distance.\n"
        "# Change:   python -m tests.benchmarks.calibrate_gate --write-sigma\n"
    )
    lines = "".join(f'"{name}": {value}\n' for name, value in table.items())  # `on` would be a boolean
    (CONFIGS / "style_sigma.yaml").write_text(head + lines, encoding="utf-8")


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--out", type=Path, help="the page that carries the section")
    options.add_argument("--write-sigma", action="store_true")
    chosen = options.parse_args()
    if chosen.write_sigma:
        write_sigma()
        return
    missing = [name for name in MAILBOXES if not (SHARED / f"{name}.jsonl").is_file()]
    if missing:
        options.exit(
            1, f"{missing[0]} is not among the mailboxes beside the repository; nothing was measured.\n"
        )
    people = {name: read_person(name) for name in MAILBOXES}
    figures = measure(list(people.values()))
    print(json.dumps({"mailboxes": figures}, indent=1))
    tables = to_markdown(figures)
    print(tables)
    if chosen.out:
        write_section(chosen.out, tables)


if __name__ == "__main__":
    main()
