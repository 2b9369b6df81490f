"""The gate on trained adapters: every check on a person's own adapter, own mail, and on another's adapter.

A threshold is good when the person's own unseen mail, put in the place of outputs, passes it nearly always
(a perfect adapter would write it), their own adapter too, and an adapter of another person does not.
"""

from __future__ import annotations

from typing import Any

from tests.benchmarks.quality.arms import OWN_MAIL, adapter_of, decide, run_of
from tests.benchmarks.quality.ledger import Ledger, Run
from tests.benchmarks.quality.page import table
from training.schemas import CheckRole, GateCheck, GateDecision

TITLE = "The gate on trained adapters"
MAILBOXES = ("david", "pereira-s", "wh-emmett-l", "wh-cerda-j", "fossum-d", "dasovich-j")
FOREIGN = {
    "david": "pereira-s",
    "pereira-s": "david",
    "wh-emmett-l": "pereira-s",
    "wh-cerda-j": "wh-emmett-l",
    "fossum-d": "pereira-s",
    "dasovich-j": "pereira-s",
}
"""Whose adapter must be refused where; mostly a colleague's, which is harder to tell than a stranger's."""
FROM_OUTPUTS = ("voice", "style", "leaks", "copies", "stopShare", "repeating", "recallUpper")
"""Metrics and checks that outputs alone decide; of the person's own mail no other counts."""


def runs() -> list[Run]:
    """Return the runs; adapters of others come last, when all are trained."""
    by_mailbox = [list(_runs_of(mailbox).values()) for mailbox in MAILBOXES]
    return [run for own, mail, _ in by_mailbox for run in (own, mail)] + [of[-1] for of in by_mailbox]


def _runs_of(mailbox: str) -> dict[str, Run]:
    return {
        "own adapter": run_of(mailbox, adapter_of(mailbox)),
        "own unseen mail": run_of(mailbox, OWN_MAIL),
        "another person's adapter": run_of(mailbox, adapter_of(FOREIGN[mailbox])),
    }


def section(ledger: Ledger) -> str:
    """Return one table for each thing that is judged: a check a line, a mailbox a column."""
    parts = [
        "Decided by training/full_gate.py with the thresholds of configs/gate.yaml as they are now; × is a "
        "threshold that is missed, ( ) one that decides nothing here. Outputs are those of the embedded "
        "engine from the converted adapter, with the app's sampling and fixed seeds."
    ]
    for which in _runs_of(MAILBOXES[0]):
        found = {mailbox: ledger.find(_runs_of(mailbox)[which]) for mailbox in MAILBOXES}
        measured = {mailbox: result for mailbox, result in found.items() if result and "evidence" in result}
        if measured:
            parts.append(_table(which, measured))
    return "\n\n".join(parts)


def _table(which: str, found: dict[str, dict[str, Any]]) -> str:
    decisions = {mailbox: decide(result) for mailbox, result in found.items()}
    rows: dict[str, list[str]] = {}
    for decision in decisions.values():
        for check in decision.checks:
            if which == "own unseen mail" and not {check.metric, check.name} & set(FROM_OUTPUTS):
                continue
            rows.setdefault(_name(check), [])
    for name, cells in rows.items():
        for decision in decisions.values():
            cells.append(_cell(decision, name))
    lines = [[name, *cells] for name, cells in rows.items()]
    if which != "own unseen mail":
        lines.append(["**decision**", *(str(decision.outcome) for decision in decisions.values())])
    title = {
        "own adapter": "**The person's own adapter**",
        "own unseen mail": "**The person's own unseen mail as outputs**",
        "another person's adapter": "**The adapter of another person** ("
        + ", ".join(f"{mailbox}: of {FOREIGN[mailbox]}" for mailbox in found)
        + ")",
    }[which]
    return f"{title}:\n\n{table(['check', *found], lines)}"


def _name(check: GateCheck) -> str:
    return f"{check.metric}: {check.name} {check.relation} {check.limit:g}"


def _cell(decision: GateDecision, name: str) -> str:
    for check in decision.checks:
        if _name(check) == name:
            value = f"{check.value:.2f}".removesuffix(".00") + ("" if check.met else " ×")
            return f"({value})" if check.role is CheckRole.SHOWN else value
    return "–"
