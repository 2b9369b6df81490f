"""The gate on trained adapters: every check on a person's own adapter, own mail, and on another's adapter.

A threshold is good when the person's own unseen mail, put in the place of outputs, passes it nearly always
(a perfect adapter would write it), their own adapter too, and an adapter of another person does not.
"""

from __future__ import annotations

from typing import Any

from tests.benchmarks.quality.arms import OWN_MAIL, adapter_of, decide, run_of
from tests.benchmarks.quality.ledger import Ledger, Run
from tests.benchmarks.quality.page import table
from training.schemas import CheckRole, GateDecision

TITLE = "The gate on trained adapters"
MAILBOXES = ("david", "pereira-s", "wh-emmett-l", "wh-cerda-j", "fossum-d", "wh-rice-c", "dasovich-j")
FOREIGN = {
    "david": "pereira-s",
    "pereira-s": "david",
    "wh-emmett-l": "pereira-s",
    "wh-cerda-j": "wh-emmett-l",
    "fossum-d": "pereira-s",
    "wh-rice-c": "wh-cerda-j",
    "dasovich-j": "pereira-s",
}
"""Whose adapter must be refused where; mostly a colleague's, which is harder to tell than a stranger's."""
TOO_LONG: dict[str, Any] = {
    "overrides": {
        "epochs": 12,
        "learning_rate": 1e-3,
        "schedule": "constant",
        "validation_fraction": 0,
        "lora": {"rank": 16, "alpha": 32, "dropout": 0},
    }
}
"""Four times as long as the default, at its full rate, and nothing that stops it: must be refused."""
TOO_LONG_ON = ("david", "dasovich-j")
"""The mailboxes with the fewest tokens: it costs half an hour of a core on each."""
TITLES = {
    "own adapter": "The person's own adapter",
    "another person's adapter": "The adapter of another person",
    "trained far too long": "The person's own adapter, trained far too long (12 epochs, no early stop)",
    "own unseen mail": "The person's own unseen mail as outputs",
}
FROM_OUTPUTS = ("voice", "style", "leaks", "copies", "empty", "stopShare", "repeating", "recallUpper")
"""Metrics and checks that outputs alone decide; of the person's own mail no other counts."""


def runs() -> list[Run]:
    """Return the runs, kind by kind: two runs on one mailbox side by side wait for one adapter. Adapters of
    others come when all are trained."""
    return [run for kind in TITLES for mailbox in MAILBOXES if (run := _run(mailbox, kind)) is not None]


def _run(mailbox: str, judged: str) -> Run | None:
    """Return the run that judges one of `TITLES` on a mailbox; None where it is not tried."""
    if judged == "trained far too long":
        return run_of(mailbox, adapter_of(mailbox, TOO_LONG)) if mailbox in TOO_LONG_ON else None
    arms = {
        "own adapter": adapter_of(mailbox),
        "own unseen mail": OWN_MAIL,
        "another person's adapter": adapter_of(FOREIGN[mailbox]),
    }
    return run_of(mailbox, arms[judged])


def section(ledger: Ledger) -> str:
    """Return one table for each thing that is judged: a check a line, a mailbox a column."""
    parts = [
        "Decided by training/full_gate.py with the thresholds of configs/gate.yaml as they are now; × is a "
        "threshold that is missed, ( ) one that decides nothing here. Outputs are those of the embedded "
        "engine from the converted adapter, with the app's sampling and fixed seeds."
    ]
    for which in TITLES:
        wanted = {mailbox: _run(mailbox, which) for mailbox in MAILBOXES}
        found = {mailbox: ledger.find(run) for mailbox, run in wanted.items() if run is not None}
        measured = {mailbox: result for mailbox, result in found.items() if result and "evidence" in result}
        if measured:
            parts.append(_table(which, measured))
    return "\n\n".join(parts)


def _table(which: str, found: dict[str, dict[str, Any]]) -> str:
    decisions = {mailbox: decide(result) for mailbox, result in found.items()}
    limits: dict[tuple[str, str], set[str]] = {}
    for decision in decisions.values():
        for check in decision.checks:
            if which == "own unseen mail" and not {check.metric, check.name} & set(FROM_OUTPUTS):
                continue
            limits.setdefault((check.metric, check.name), set()).add(f"{check.relation} {check.limit:g}")
    lines = []
    for (metric, name), told in limits.items():
        limit = told.pop() if len(told) == 1 else "as long as own mails allow"
        cells = (_cell(decision, name) for decision in decisions.values())
        lines.append([f"{metric}: {name} {limit}", *cells])
    if which != "own unseen mail":
        lines.append(["**decision**", *(str(decision.outcome) for decision in decisions.values())])
    whose = ", ".join(f"{mailbox}: of {FOREIGN[mailbox]}" for mailbox in found)
    title = TITLES[which] + (f" ({whose})" if which == "another person's adapter" else "")
    return f"**{title}**:\n\n{table(['check', *found], lines)}"


def _cell(decision: GateDecision, name: str) -> str:
    check = next((check for check in decision.checks if check.name == name), None)
    if check is None:
        return "–"
    value = f"{check.value:.2f}".removesuffix(".00") + ("" if check.met else " ×")
    return f"({value})" if check.role is CheckRole.SHOWN else value
