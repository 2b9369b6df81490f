"""Single steps and their mean: what the validation slice says of each, and what held-out mail says.

One training of the default recipe on each mailbox. All weights that the early stop looked at are measured on
held-out mail too, which chooses nothing.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.benchmarks.quality.ledger import Ledger, Run
from tests.benchmarks.quality.measure import (
    course,
    encode_all,
    loaded_base,
    numbers,
    prepare_mailbox,
    train,
)
from tests.benchmarks.quality.page import table
from tests.benchmarks.quality.paired import compare, mean_nll
from training.choose import choose
from training.config import load_train_config

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from training.flat_parameters import FlatParameters

TITLE = "Single steps and their mean"
KIND = "every look"
MAILBOXES = ("david", "pereira-s", "wh-emmett-l", "wh-cerda-j", "fossum-d", "wh-rice-c", "dasovich-j")
SEED = 18
"""Not the seed of the recipes, so that the table says something that theirs do not."""


def runs() -> list[Run]:
    """Return one run for each mailbox."""
    return [Run(KIND, mailbox, {"seed": SEED}) for mailbox in MAILBOXES]


def measure_every_look(run: Run, work: Path) -> dict[str, Any]:
    """Train the default recipe; return validation and held-out losses of each look and of the mean."""
    from training.early_stop import EarlyStop
    from training.evaluate import held_out_losses

    preset = load_train_config("default", dict(run.settings))
    base = loaded_base(preset, work)
    prepared = prepare_mailbox(run.mailbox, preset)
    config = choose(preset, prepared.train).config
    held_out = encode_all(prepared.held_out, config, base)
    looked: list[tuple[str, float, torch.Tensor]] = []
    flat: list[FlatParameters] = []
    look, look_at_mean = EarlyStop.look, EarlyStop.look_at_mean

    def note(self: EarlyStop, step: int, nll: float, weights: FlatParameters) -> None:
        flat[:] = [weights]
        looked.append((str(step), nll, weights.master.detach().clone()))
        look(self, step, nll, weights)

    def note_mean(self: EarlyStop, step: int, begin: int, nll: float, mean: torch.Tensor) -> None:
        looked.append((f"mean of {begin + 1} to {step}", nll, mean.clone()))
        look_at_mean(self, step, begin, nll, mean)

    found: list[dict[str, Any]] = []

    def judge(model: PeftModel) -> None:
        for name, nll, weights in looked:
            with flat[0].replaced_by(weights):
                losses = held_out_losses(model, base, held_out, config.batch_tokens)
            found.append({"look": name, "validation": round(nll, 5), "held_out": numbers(losses)})

    with (
        TemporaryDirectory(dir=work) as out,
        mock.patch.object(EarlyStop, "look", note),
        mock.patch.object(EarlyStop, "look_at_mean", note_mean),
    ):
        result = train(config, prepared.train, base, Path(out), after_training=judge)
    return {**course(result), "looks": found}


def section(ledger: Ledger) -> str:
    """Return one line for each mailbox."""
    header = ["mailbox", "validation: best step", "mean", "held-out: best step", "mean"]
    header += ["mean − step (95 %)", "kept"]
    rows = []
    for run in runs():
        found = ledger.find(run)
        rows.append([run.mailbox, "not measured", *[""] * 5] if found is None else _row(run.mailbox, found))
    return "\n\n".join(
        [
            f"One training of the preset `default` on each mailbox, seed {SEED}. The best step is the look "
            "with the lowest loss on the validation slice; the mean is that of the weights after the steps "
            "named. The slice chooses between them; held-out loss says whether it chose well. The interval "
            "is a paired bootstrap over mails.",
            table(header, rows),
        ]
    )


def _row(mailbox: str, found: dict[str, Any]) -> list[str]:
    *steps, mean = found["looks"]
    best = min(steps, key=lambda look: float(look["validation"]))
    return [
        mailbox,
        f"{best['validation']:.3f} (step {best['look']})",
        f"{mean['validation']:.3f} ({mean['look'].removeprefix('mean of ')})",
        f"{mean_nll(best['held_out']):.3f}",
        f"{mean_nll(mean['held_out']):.3f}",
        str(compare(mean["held_out"], best["held_out"])),
        "step" if found["averaged_from"] is None else "mean",
    ]
