"""bf16 against fp32 at the end of training: the same seed, the same batches, no early stop."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.quality.ledger import Ledger, Run
from tests.benchmarks.quality.page import table
from tests.benchmarks.quality.paired import compare, mean_nll
from tests.benchmarks.quality.sweep import CENTRE, MAILBOXES, RECIPE, settings

TITLE = "bf16 against fp32"
SETTINGS: dict[str, Any] = {
    **RECIPE,
    **settings(**CENTRE),
    "validation_fraction": 0,  # both arms do every step: what is compared is arithmetic, not when to stop
    "seed": 17,
}


def runs() -> list[Run]:
    return [run_of(mailbox, precision) for mailbox in MAILBOXES for precision in ("bf16", "fp32")]


def run_of(mailbox: str, precision: str) -> Run:
    return Run("judged in fp32", mailbox, {**SETTINGS, "precision": precision})


def section(ledger: Ledger) -> str:
    """Return the table: one mailbox a line."""
    rows = []
    for mailbox in MAILBOXES:
        bf16, fp32 = (ledger.find(run_of(mailbox, precision)) for precision in ("bf16", "fp32"))
        if bf16 is None or fp32 is None:
            rows.append([mailbox, "–", "not measured", "", "", ""])
            continue
        rows.append(
            [
                mailbox,
                str(len(bf16["held_out"])),
                f"{mean_nll(bf16['held_out']):.4f}",
                f"{mean_nll(fp32['held_out']):.4f}",
                str(compare(bf16["held_out"], fp32["held_out"])),
                f"{bf16['final_train_loss'] - fp32['final_train_loss']:+.3f}",
            ]
        )
    header = [
        "mailbox",
        "held-out mails",
        "trained in bf16",
        "trained in fp32",
        "bf16 − fp32 (95 %)",
        "training loss, last tenth",
    ]
    return "\n\n".join(
        [
            "Held-out loss of adapters trained in bf16 (fp32 master weights) and in fp32: 3 epochs, same "
            "seed, same batches, no early stop; both judged beside the base in fp32. The interval is a "
            "paired bootstrap over mails.",
            table(header, rows),
        ]
    )
