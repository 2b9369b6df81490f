"""The recipes that people use, on the same mail: the base, the owner's settings, Panza's, TRL's, ours.

Every arm is trained on the same examples, cut at the same length, and judged by the same gate.
"""

from __future__ import annotations

from typing import Any

from tests.benchmarks.quality.adapters import OURS
from tests.benchmarks.quality.arms import BASE, adapter_of, cross_run, decide, run_of
from tests.benchmarks.quality.ledger import Ledger, Run
from tests.benchmarks.quality.page import table
from tests.benchmarks.quality.paired import compare, mean_nll

TITLE = "Recipes"
MAILBOXES = ("david", "pereira-s", "wh-emmett-l", "wh-cerda-j", "fossum-d", "wh-rice-c", "dasovich-j")
SEEDS: dict[str, Any] = {"preset": "seeds"}
PANZA: dict[str, Any] = {
    "overrides": {
        "epochs": 5,
        "learning_rate": 1e-5,
        "schedule": "linear",
        "validation_fraction": 0,
        "lora": {"rank": 8, "alpha": 16, "dropout": 0.05},
    },
    "mails_per_step": 8,
    "warmup_steps": 8,
}
"""references/voice.md §1.1, with our trainer and our instructions: Panza's own come from data playback."""
TRL: dict[str, Any] = {"trainer": "trl", "overrides": {"validation_fraction": 0}}
"""Every mail is trained on; the other settings of the preset have no part in it."""
OUR_NAME = "ours (preset default)"
RECIPES: dict[str, dict[str, Any] | None] = {
    "base": None,
    "the owner's (preset seeds)": SEEDS,
    "Panza's LoRA": PANZA,
    "TRL with PEFT, defaults": TRL,
    OUR_NAME: OURS,
}


def runs() -> list[Run]:
    """Return the runs: ours, then the matrix of our adapters, then recipe by recipe, so that two runs side by
    side are on two mailboxes and do not wait for one adapter."""
    arms = {
        name: [run_of(mailbox, _arm(mailbox, recipe)) for mailbox in MAILBOXES]
        for name, recipe in RECIPES.items()
    }
    ours = arms.pop(OUR_NAME)
    matrix = [cross_run(mailbox, of) for of in MAILBOXES for mailbox in MAILBOXES]
    return [*ours, *matrix, *(run for group in arms.values() for run in group)]


def _arm(mailbox: str, recipe: dict[str, Any] | None) -> dict[str, Any]:
    return BASE if recipe is None else adapter_of(mailbox, recipe)


def section(ledger: Ledger) -> str:
    """Return the table of the recipes and the matrix of our adapters."""
    rows = []
    for mailbox in MAILBOXES:
        found = {
            name: ledger.find(run_of(mailbox, _arm(mailbox, recipe))) for name, recipe in RECIPES.items()
        }
        rows += [_row(mailbox, name, result, found["base"]) for name, result in found.items()]
    header = [
        "mailbox",
        "recipe",
        "held-out loss",
        "to the base (95 %)",
        "voice",
        "style gap closed",
        "copies",
        "leaks",
        "stops by itself",
        "epochs",
        "tokens",
        "minutes",
        "gate",
    ]
    return "\n\n".join(
        [
            "Same mailbox, split, base model (smollm2-135m) and examples, cut at 1,024 tokens; the token "
            "budget is the examples times the epochs, which are each recipe's own: no other is smaller "
            "than ours. Loss in nat per reply token; voice: 0 writes like the base, 1 like the person; "
            "copies, leaks and stops over the gate's 24 held-out prompts, answered by the converted "
            "adapter. Panza: r 8, alpha 16, dropout 0.05, lr 1e-5, 5 epochs, 8 mails a step, 8 steps of "
            "warm-up, linear decay; its instructions come from data playback and its shipped method adds "
            "a sparse part (RoSA), both of which are not copied: instructions are ours in every arm. TRL "
            "and PEFT: every default of SFTConfig and LoraConfig, 3 epochs, loss on the reply; to save "
            "time its 8 mails of a step are taken two at a time with eager attention, which changes "
            "rounding only. Minutes are those of the training steps on a machine that was busy with other"
            " things: an order of magnitude.",
            table(header, rows),
            _matrix(ledger),
        ]
    )


def _row(mailbox: str, name: str, result: dict[str, Any] | None, base: dict[str, Any] | None) -> list[str]:
    if result is None:
        return [mailbox, name, "not measured", *[""] * 10]
    if "diverged" in result:
        return [mailbox, name, f"ended at step {result['step']}", *[""] * 10]
    decision, course = decide(result), result["course"]
    numbers = decision.numbers

    def said(key: str, form: str = "{:.2f}") -> str:
        return form.format(numbers[key]) if key in numbers else "–"

    return [
        mailbox,
        name,
        f"{mean_nll(result['held_out']):.3f}",
        "" if base is None or name == "base" else str(compare(result["held_out"], base["held_out"])),
        said("voice"),
        said("gapClosed"),
        said("copies", "{:.0f}"),
        said("leaks", "{:.0f}"),
        said("stopShare"),
        f"{course['epochs']:g}" if course else "",
        f"{course['train_tokens']:,}" if course else "",
        f"{course['train_seconds'] / 60:.1f}" if course else "",
        "" if name == "base" else str(decision.outcome),
    ]


def _matrix(ledger: Ledger) -> str:
    """Return held-out losses of our adapters on every mailbox, the lowest of a column in bold."""
    losses = {
        (of, mailbox): mean_nll(found["held_out"])
        for of in MAILBOXES
        for mailbox in MAILBOXES
        if (found := ledger.find(cross_run(mailbox, of))) is not None
    }
    lowest = {
        mailbox: min((nll for (_, on), nll in losses.items() if on == mailbox), default=None)
        for mailbox in MAILBOXES
    }
    rows = []
    for of in MAILBOXES:
        cells = []
        for mailbox in MAILBOXES:
            nll = losses.get((of, mailbox))
            said = "–" if nll is None else f"{nll:.3f}"
            cells.append(f"**{said}**" if nll is not None and nll == lowest[mailbox] else said)
        rows.append([f"adapter of {of}", *cells])
    return (
        "Our adapters on every mailbox: held-out loss, the best adapter of each column in bold.\n\n"
        + table(["", *(f"mail of {mailbox}" for mailbox in MAILBOXES)], rows)
    )
