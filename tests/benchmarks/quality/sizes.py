"""Learning curve: one mailbox cut to fewer mails, with different limits of epochs and ranks.

What `training/choose.py` does about few mails rests on this. As in the sweep, only the validation slice
chooses; held-out loss stands beside it. A cut leaves the newest mails, as a smaller mailbox would have them,
and the held-out mails are the same for every size.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from tests.benchmarks.quality.ledger import Ledger, Run
from tests.benchmarks.quality.page import table
from tests.benchmarks.quality.paired import mean_nll
from tests.benchmarks.quality.sweep import validation_nll
from training.choose import DROPOUT, RANK, RATE, SCALE, WATCHED_SHARE

TITLE = "Mails, epochs and rank"
MAILBOXES = {"david": (50, 100, 0), "wh-emmett-l": (50, 100, 200, 0), "fossum-d": (50, 100, 200, 0)}
"""Training mails that are left of each; 0: all, which are 141, 291 and 290."""
EPOCHS = (3, 6, 10)
"""Limits; an early stop ends most runs before the last of them."""
RANKS = (RANK, 8)
SEED = 17


def runs() -> list[Run]:
    """Return the runs: the smallest sizes first, where the limits of epochs should differ most, and every
    limit at the usual rank before any at another."""
    sizes = sorted(
        ((mails, mailbox) for mailbox, cuts in MAILBOXES.items() for mails in cuts),
        key=lambda size: size[0] or 1000,
    )
    return [
        run_of(mailbox, mails, epochs, rank)
        for rank in RANKS
        for mails, mailbox in sizes
        for epochs in EPOCHS
    ]


def run_of(mailbox: str, mails: int, epochs: int, rank: int) -> Run:
    """Return one training on the newest `mails` of the training part (0: on all of it)."""
    preset: dict[str, Any] = {
        # Spelt out, so that what is measured does not move when a default does.
        "epochs": epochs,
        "learning_rate": RATE,
        "schedule": "linear",
        "batch_tokens": 704,
        "validation_fraction": WATCHED_SHARE,
        "min_validation": 12,
        "patience": 1,
        "min_delta": 0.005,
        "lora": {"rank": rank, "alpha": SCALE * rank, "dropout": DROPOUT},
        "seed": SEED,
    }
    return Run("newest mails", mailbox, {"mails": mails, "preset": preset})


def section(ledger: Ledger) -> str:
    """Return one line for each size and rank, with every limit of epochs beside the others."""
    header = ["mailbox, training mails", "rank", "tokens an epoch", "steps an epoch"]
    for epochs in EPOCHS:
        header += [f"{epochs} epochs: validation", "held-out", "best after (steps, epochs)"]
    rows = [
        _row(mailbox, mails, rank, [ledger.find(run_of(mailbox, mails, epochs, rank)) for epochs in EPOCHS])
        for mailbox, cuts in MAILBOXES.items()
        for mails in cuts
        for rank in RANKS
    ]
    return "\n\n".join(
        [
            "The newest mails of the training part; early stop, alpha = 2 × rank, learning rate "
            f"{RATE:g}, dropout {DROPOUT:g}, one seed. `validation`: the lowest loss on the slice, which is "
            "the same for every limit of one size and alone chooses; it differs from size to size. Held-out "
            "loss is reported and chooses nothing.",
            table(header, [row for row in rows if row is not None]),
            _gains(ledger),
        ]
    )


def _row(mailbox: str, mails: int, rank: int, found: Sequence[dict[str, Any] | None]) -> list[str] | None:
    """Return a line of the table, None when nothing of it is measured."""
    finished = [result for result in found if result is not None and "diverged" not in result]
    if not any(found):
        return None
    cells: list[str] = []
    for result in found:
        if result is None or "diverged" in result:
            cells += ["–" if result is None else "diverged", "", ""]
            continue
        best = result["best_step"] / result["steps"] * result["epochs"]
        cells += [
            f"{validation_nll(result):.3f}",
            f"{mean_nll(result['held_out']):.3f}",
            f"{result['best_step']}, {best:.1f}",
        ]
    size = f"{mailbox}, {mails or 'all'}"
    if not finished:
        return [size, str(rank), "", "", *cells]
    tokens = fmean(result["train_tokens"] / result["epochs"] for result in finished)
    steps = fmean(result["steps"] / result["epochs"] for result in finished)
    return [size, str(rank), f"{tokens:,.0f}", f"{steps:.0f}", *cells]


def _gains(ledger: Ledger) -> str:
    """Say what a higher limit of epochs, and the other rank, change on the validation slice in the mean."""
    sizes = [(mailbox, mails) for mailbox, cuts in MAILBOXES.items() for mails in cuts]
    arms = [(f"{epochs} epochs", epochs, RANKS[0]) for epochs in EPOCHS[1:]]
    arms += [(f"rank {rank}", EPOCHS[0], rank) for rank in RANKS[1:]]
    told = []
    for name, epochs, rank in arms:
        pairs = [
            (ledger.find(run_of(*size, epochs, rank)), ledger.find(run_of(*size, EPOCHS[0], RANKS[0])))
            for size in sizes
        ]
        gains = [
            validation_nll(arm) - validation_nll(centre)
            for arm, centre in pairs
            if arm and centre and "diverged" not in arm and "diverged" not in centre
        ]
        if gains:
            better = sum(gain < 0 for gain in gains)
            told.append(f"{name} {fmean(gains):+.3f}, better in {better} of {len(gains)} sizes")
    if not told:
        return "Nothing is measured yet that could be compared."
    return f"Validation loss against {EPOCHS[0]} epochs at rank {RANKS[0]}: {'; '.join(told)}."
