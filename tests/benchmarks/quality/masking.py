"""What leaving third persons out of the loss costs: held-out loss of all tokens, names, and the rest."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.quality.ledger import Ledger, Run
from tests.benchmarks.quality.page import table
from tests.benchmarks.quality.paired import compare, mean_nll
from tests.benchmarks.quality.sweep import CENTRE, MAILBOXES, RECIPE, settings

TITLE = "Third persons left out of the loss"
SEED = 17


def runs() -> list[Run]:
    return [run_of(mailbox, masked) for mailbox in MAILBOXES for masked in (True, False)]


def run_of(mailbox: str, masked: bool) -> Run:
    chosen: dict[str, Any] = {
        **RECIPE,
        **settings(**CENTRE),
        # Both arms do every step: when to stop is decided by a slice in which names count.
        "validation_fraction": 0,
        "seed": SEED,
        "data": {"mask_third_persons": masked},
    }
    return Run("judged by token", mailbox, chosen)


def section(ledger: Ledger) -> str:
    """Return the table: one mailbox a line."""
    rows = []
    for mailbox in MAILBOXES:
        on, off = ledger.find(run_of(mailbox, True)), ledger.find(run_of(mailbox, False))
        if on is None or off is None:
            rows.append([mailbox, "not measured", *[""] * 4])
            continue
        names = sum(tokens for _, tokens in on["names"])
        rows.append(
            [
                mailbox,
                f"{names} of {sum(tokens for _, tokens in on['held_out'])}",
                f"{mean_nll(on['held_out']):.3f} / {mean_nll(off['held_out']):.3f}",
                *(
                    str(compare(_with_tokens(on[which]), _with_tokens(off[which])))
                    for which in ("held_out", "rest", "names")
                ),
            ]
        )
    header = [
        "mailbox",
        "held-out tokens that are names",
        "masked / not masked",
        "difference, all tokens",
        "difference, the rest",
        "difference, names",
    ]
    return "\n\n".join(
        [
            "Held-out loss with `data.mask_third_persons` on and off: 3 epochs, same seed, no early stop. A "
            "difference is masked − not masked with a paired bootstrap over mails; positive: masking costs.",
            table(header, rows),
        ]
    )


def _with_tokens(losses: list[list[float]]) -> list[list[float]]:
    """Return the losses of the mails that have such tokens: a draw of none but the others has no mean."""
    return [loss for loss in losses if loss[1]]
