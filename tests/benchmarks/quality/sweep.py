"""Learning rate, rank, dropout and batch size around the centre, judged by the validation slice.

The slice is a part of the training mails (training.plan.split_validation). Held-out loss stands beside it
and chooses nothing: what is chosen by it could no longer be proved on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from tests.benchmarks.quality.ledger import Ledger, Run
from tests.benchmarks.quality.page import table
from tests.benchmarks.quality.paired import mean_nll

TITLE = "Learning rate, rank, dropout and batch size"
MAILBOXES = ("david", "dasovich-j", "pereira-s")
SEEDS = (17, 18)
Cell = tuple[str, int]
"""Mailbox and seed."""
RECIPE: dict[str, Any] = {
    "epochs": 3,
    "schedule": "linear",
    "validation_fraction": 0.1,
    "min_validation": 12,
    "patience": 1,
    "min_delta": 0.005,
}
"""Spelt out, so that what is being swept does not move when a default does."""
CENTRE: dict[str, Any] = {"learning_rate": 1e-3, "rank": 16, "dropout": 0.05, "batch_tokens": 704}
NEAR = (
    CENTRE,
    *({**CENTRE, "dropout": dropout} for dropout in (0.0, 0.1)),
    *({**CENTRE, "learning_rate": rate} for rate in (5e-4, 2e-3)),
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


def run_of(mailbox: str, seed: int, **setting: Any) -> Run:
    """Return one training of the sweep."""
    return Run("adapter", mailbox, {**RECIPE, **settings(**setting), "seed": seed})


def settings(*, learning_rate: float, rank: int, dropout: float, batch_tokens: int) -> dict[str, Any]:
    """Return a setting as a preset has it; alpha is twice the rank, so the adapter's scale is always 2."""
    return {
        "learning_rate": learning_rate,
        "batch_tokens": batch_tokens,
        "lora": {"rank": rank, "alpha": 2 * rank, "dropout": dropout},
    }


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
        "better in",
        *(f"held-out {mailbox}" for mailbox in MAILBOXES),
        "best after (epochs)",
    ]
    rows = [_row(_name(setting), cells[_name(setting)], centre) for setting in SETTINGS]
    return "\n\n".join(
        [
            f"Settings around the centre, which is the first line; alpha = 2 × rank, "
            f"{RECIPE['epochs']} epochs at most, early stop. `validation`: the lowest loss on the validation "
            "slice; it alone chooses. The centre's line has means; the others have mean differences to the "
            "centre over the runs that both have (same mailbox, same seed), negative is better, and in how "
            "many of them they are better. Held-out loss is reported and chooses nothing.",
            table(header, rows),
            _base_sentence(cells),
        ]
    )


def validation_nll(result: dict[str, Any]) -> float:
    """Return the lowest validation loss of a run, infinite for one that diverged."""
    return min((nll for _, nll in result.get("validation", ())), default=float("inf"))


def _row(name: str, cells: dict[Cell, dict[str, Any]], centre: dict[Cell, dict[str, Any]]) -> list[str]:
    """Return a line of the table: means for the centre, mean differences to it for any other setting."""
    is_centre = cells is centre
    finished = {cell: found for cell, found in cells.items() if "diverged" not in found}
    diverged = len(cells) - len(finished)
    shared = [cell for cell in finished if "held_out" in centre.get(cell, {})]

    def against(measure: Callable[[dict[str, Any]], float], mailbox: str | None = None) -> list[float]:
        return [
            measure(finished[cell]) - (0 if is_centre else measure(centre[cell]))
            for cell in shared
            if mailbox in (None, cell[0])
        ]

    form = "{:.3f}" if is_centre else "{:+.3f}"
    validation = against(validation_nll)
    return [
        name,
        f"{len(cells)}" + (f", {diverged} diverged" if diverged else ""),
        _mean(validation, form),
        "" if is_centre or not shared else f"{sum(d < 0 for d in validation)} of {len(shared)}",
        *(_mean(against(_held_out_nll, mailbox), form) for mailbox in MAILBOXES),
        _mean(
            [found["best_step"] / found["steps"] * found["epochs"] for found in finished.values()], "{:.1f}"
        ),
    ]


def _held_out_nll(found: dict[str, Any]) -> float:
    return mean_nll(found["held_out"])


def _base_sentence(cells: dict[str, dict[Cell, dict[str, Any]]]) -> str:
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
    rate = f"{setting['learning_rate']:.0e}".replace("e-0", "e-")
    return (
        f"lr {rate}, rank {setting['rank']}, dropout {setting['dropout']:g}, "
        f"{setting['batch_tokens']} tokens a step"
    )


def _mean(values: Sequence[float], form: str) -> str:
    return form.format(fmean(values)) if values else "–"
