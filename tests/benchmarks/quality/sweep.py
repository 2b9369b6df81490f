"""Learning rate, rank and dropout, one at a time around the centre, judged by the validation slice.

The slice is a part of the training mails (training.plan.split_validation). Held-out loss stands beside it
and chooses nothing: what is chosen by it could no longer be proved on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from tests.benchmarks.quality.ledger import Ledger, Run
from tests.benchmarks.quality.page import table
from tests.benchmarks.quality.paired import mean_nll

TITLE = "Learning rate, rank and dropout"
MAILBOXES = ("david", "dasovich-j", "pereira-s")
SEEDS = (17, 18)
RECIPE: dict[str, Any] = {
    "epochs": 3,
    "schedule": "linear",
    "batch_tokens": 704,
    "validation_fraction": 0.1,
    "min_validation": 12,
    "patience": 1,
    "min_delta": 0.005,
}
"""Spelt out, so that what is being swept does not move when a default does."""
CENTRE: dict[str, Any] = {"learning_rate": 1e-3, "rank": 16, "dropout": 0.05}
NEAR = (
    CENTRE,
    *({**CENTRE, "learning_rate": rate} for rate in (5e-4, 2e-3)),
    *({**CENTRE, "dropout": dropout} for dropout in (0.0, 0.1)),
    *({**CENTRE, "rank": rank} for rank in (8, 32)),
)
FAR = tuple({**CENTRE, "learning_rate": rate} for rate in (2e-4, 3e-3))
"""One seed tells them from the centre."""
SETTINGS = (*NEAR, *FAR)


def runs() -> list[Run]:
    """Return the runs, the first seed of every setting before the second of any."""
    first, second = SEEDS
    wanted = [(first, setting) for setting in SETTINGS] + [(second, setting) for setting in NEAR]
    return [run_of(mailbox, seed, **setting) for seed, setting in wanted for mailbox in MAILBOXES]


def run_of(mailbox: str, seed: int, *, learning_rate: float, rank: int, dropout: float) -> Run:
    """Return one training of the sweep; alpha is twice the rank throughout, so the adapter's scale is 2."""
    setting = settings(learning_rate=learning_rate, rank=rank, dropout=dropout)
    return Run("adapter", mailbox, {**RECIPE, **setting, "seed": seed})


def settings(*, learning_rate: float, rank: int, dropout: float) -> dict[str, Any]:
    """Return a setting as a preset has it."""
    return {"learning_rate": learning_rate, "lora": {"rank": rank, "alpha": 2 * rank, "dropout": dropout}}


def section(ledger: Ledger) -> str:
    """Return the table of what is measured, and what it says."""
    cells = {
        name: {
            (mailbox, seed): found
            for mailbox in MAILBOXES
            for seed in SEEDS
            if (found := ledger.find(run_of(mailbox, seed, **setting))) is not None
        }
        for name, setting in zip(map(_name, SETTINGS), SETTINGS, strict=True)
    }
    centre = cells[_name(CENTRE)]
    header = [
        "setting",
        "runs",
        "validation",
        "against the centre",
        "better in",
        *(f"held-out {mailbox}" for mailbox in MAILBOXES),
        "best after (epochs)",
    ]
    order = sorted(
        SETTINGS, key=lambda s: (s["rank"], s["dropout"], s["learning_rate"]) if s != CENTRE else (0,)
    )
    rows = [_row(_name(setting), cells[_name(setting)], centre) for setting in order]
    return "\n\n".join(
        [
            f"One setting at a time around the centre ({_name(CENTRE)}; alpha = 2 × rank; {RECIPE['epochs']} "
            "epochs at most, early stop). `validation`: the lowest loss on the validation slice, mean over "
            "mailboxes and seeds; it alone chooses. `against the centre`: mean difference over the runs that "
            "both have (same mailbox, same seed), negative is better; `better in`: in how many of them. "
            "Held-out loss is reported and chooses nothing.",
            table(header, rows),
            _base_sentence(cells),
        ]
    ).strip("\n")


def validation_nll(result: dict[str, Any]) -> float:
    """Return the lowest validation loss of a run, infinite for one that diverged."""
    return min((nll for _, nll in result.get("validation", ())), default=float("inf"))


def _row(name: str, cells: dict[tuple[str, int], dict[str, Any]], centre: dict[Any, Any]) -> list[str]:
    finished = {cell: result for cell, result in cells.items() if "diverged" not in result}
    diverged = len(cells) - len(finished)
    differences = [
        validation_nll(finished[cell]) - validation_nll(centre[cell]) for cell in finished if cell in centre
    ]
    return [
        name,
        f"{len(cells)}" + (f", {diverged} diverged" if diverged else ""),
        _mean([validation_nll(result) for result in finished.values()]),
        f"{fmean(differences):+.3f}" if differences and cells is not centre else "",
        f"{sum(d < 0 for d in differences)} of {len(differences)}" if cells is not centre else "",
        *(
            _mean(
                [mean_nll(result["held_out"]) for (where, _), result in finished.items() if where == mailbox]
            )
            for mailbox in MAILBOXES
        ),
        _mean([result["best_step"] / result["steps"] * result["epochs"] for result in finished.values()], 1),
    ]


def _base_sentence(cells: dict[str, dict[tuple[str, int], dict[str, Any]]]) -> str:
    """Say what the base alone reaches on the held-out mails, and how many mails these are."""
    found = {
        mailbox: result
        for results in cells.values()
        for (mailbox, _), result in results.items()
        if "base" in result
    }
    told = [
        f"{mailbox} {mean_nll(result['base']):.3f} ({len(result['base'])} held-out mails, "
        f"{result['validation_emails']} in the validation slice)"
        for mailbox, result in sorted(found.items())
    ]
    return f"The base alone: {'; '.join(told)}." if told else "Nothing is measured yet."


def _name(setting: dict[str, Any]) -> str:
    return (
        f"lr {setting['learning_rate']:.0e}, rank {setting['rank']}, dropout {setting['dropout']:g}".replace(
            "e-0", "e-"
        )
    )


def _mean(values: Sequence[float], digits: int = 3) -> str:
    return f"{fmean(values):.{digits}f}" if values else "–"
