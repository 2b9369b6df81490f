"""What each mode of a retrain does to new and to old held-out mail, on mailboxes split by time."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.quality.ledger import Ledger, Run
from tests.benchmarks.quality.page import table
from tests.benchmarks.quality.paired import compare, mean_nll
from tests.benchmarks.quality.sweep import CENTRE, RECIPE, settings
from training.schemas import RetrainMode

TITLE = "Retraining: replay, incremental, rolling"
MAILBOXES = ("fossum-d", "wh-rice-c")
SEEDS = (17,)
ARMS = {
    "base": "base",
    "first": "first adapter (old mail only)",
    **{mode.value: f"retrain, {mode.value}" for mode in RetrainMode},
}
SETS = ("new", "next", "old")


def runs() -> list[Run]:
    return [run_of(mailbox, seed) for seed in SEEDS for mailbox in MAILBOXES]


def run_of(mailbox: str, seed: int) -> Run:
    return Run("over time", mailbox, {**RECIPE, **settings(**CENTRE), "seed": seed})


def section(ledger: Ledger) -> str:
    """Return a table per mailbox."""
    parts = [
        "A first training on the oldest part of a mailbox (250 usable mails), then 150 newer ones arrive and "
        "it is trained again, by each mode, through the functions that choose the mail of a job "
        "(tasks/training_mail.py, store/mail.py on a real PostgreSQL). The cap on mails read is what the "
        "first training read, so that old mail must make room, as in a mailbox that has outgrown its cap. "
        "`new`: held-out mails among the newcomers, in threads that no adapter saw; `next`: the 60 usable "
        "mails that followed; `old`: the held-out set of the first training. Differences are to the first "
        "adapter, with a paired bootstrap over mails."
    ]
    for mailbox in MAILBOXES:
        for seed in SEEDS:
            found = ledger.find(run_of(mailbox, seed))
            title = f"**{mailbox}**, seed {seed}: "
            parts.append(title + ("not measured." if found is None else _table(found)))
    return "\n\n".join(parts)


def _table(found: dict[str, Any]) -> str:
    losses = found["losses"]
    rows = []
    for arm, title in ARMS.items():
        trained = found["trained"].get(arm)
        row = [title, f"{trained['new']} + {trained['old']}" if trained else ""]
        for name in SETS:
            row.append(f"{mean_nll(losses[arm][name]):.3f}")
            if arm not in ("base", "first"):
                row[-1] += f", {compare(losses[arm][name], losses['first'][name])}"
        rows.append(row)
    sizes = ", ".join(f"{len(losses['base'][name])} {name}" for name in SETS)
    return (
        f"{found['first_sent']} sent mails first, {found['arrived']} more later; held-out mails: {sizes}.\n\n"
        + table(["adapter", "trained on new + old", *SETS], rows)
    )
