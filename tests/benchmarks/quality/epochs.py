"""How long to plan a training: one, two or three epochs, each with its whole decay of the learning rate.

A plan is not a limit: the rate falls to nothing at its end, so two epochs that were planned as two are not
the first two of three. A plan is chosen by the validation slice and by how far the adapter is from having
learnt single mails by heart (metric 5b of the gate); held-out loss stands beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.benchmarks.quality.ledger import Ledger, Run
from tests.benchmarks.quality.page import table
from tests.benchmarks.quality.paired import mean_nll
from tests.benchmarks.quality.sweep import validation_nll

TITLE = "Epochs that are planned"
KIND = "learnt by heart"
MAILBOXES = ("david", "dasovich-j", "pereira-s", "merrin")
"""`merrin` is the sample mailbox, whose mails are more alike than anybody's."""
PLANS = (1, 2, 3)


def runs() -> list[Run]:
    """Return the runs, one mailbox after another."""
    return [run_of(mailbox, epochs) for mailbox in MAILBOXES for epochs in PLANS]


def run_of(mailbox: str, epochs: int) -> Run:
    """Return the default recipe with a plan of `epochs`."""
    return Run(KIND, mailbox, {"recipe": {"preset": "default", "overrides": {"epochs": epochs}}})


def section(ledger: Ledger) -> str:
    """Return one line for each mailbox and plan."""
    header = ["mailbox, planned epochs", "kept after", "validation", "held-out"]
    header += ["overfit gap", "membership", "minutes"]
    rows = [
        _row(mailbox, epochs, result)
        for mailbox in MAILBOXES
        for epochs in PLANS
        if (result := ledger.find(run_of(mailbox, epochs))) is not None
    ]
    return "\n\n".join(
        [
            "The default recipe but for the plan; linear decay to the plan's end, early stop. `kept after`: "
            "steps and epochs of the weights that are kept. `overfit gap`: how much more was gained on 60 "
            "mails that were trained on than on held-out mail, nat per token; `membership`: how well that "
            "tells the one from the other (0.5: not at all). Minutes on one core beside another training.",
            table(header, rows),
        ]
    )


def _row(mailbox: str, epochs: int, result: Mapping[str, Any]) -> list[str]:
    course = result["course"]
    kept = course["best_step"] / course["steps"] * course["epochs"]
    return [
        f"{mailbox}, {epochs}",
        f"{course['best_step']}, {kept:.1f}",
        f"{validation_nll(course):.3f}",
        f"{mean_nll(result['held_out']):.3f}",
        f"{result['overfit_gap']:.2f}",
        f"{result['membership_auc']:.2f}",
        f"{course['train_seconds'] / 60:.1f}",
    ]
