"""Judge one arm as the gate does: an adapter, the base, or the person's own unseen mail in its place.

The arm is a candidate on one mailbox: losses, outputs of the embedded engine from the converted adapter with
the app's sampling, evidence. Decisions are taken from the evidence when a page is written, so thresholds can
change without anything being measured again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.base import Serving
from tests.benchmarks.quality.adapters import (
    OURS,
    answers,
    engine,
    losses,
    read_course,
    read_mails,
    references,
    trained,
    trained_sample,
)
from tests.benchmarks.quality.ledger import Run
from tests.benchmarks.quality.measure import numbers
from training.dataset import prompt_messages
from training.errors import TrainingDiverged
from training.evidence import Outputs, chosen_prompts, gather_evidence
from training.full_gate import Evidence, decide_full
from training.gate_config import load_gate_config
from training.harm import Generation
from training.measure import PERSONA_SAMPLE, TRAIN_SAMPLE, spread_evenly
from training.neutral_tasks import neutral_examples, swapped_examples
from training.panel import panel_members, panel_texts
from training.panel_file import PanelMember
from training.schemas import ArmLosses, Example, GateDecision, Generated, MeasuredLosses

KIND, CROSS = "arm", "cross"
_GATE = load_gate_config()
GENERATION: dict[str, Any] = {
    "outputs": _GATE.outputs,
    "judge_outputs": _GATE.judge_outputs,
    "max_tokens": _GATE.max_tokens,
    "seed": _GATE.seed,
}
"""What decides the outputs; the thresholds do not."""
BASE = {"what": "base"}
OWN_MAIL = {"what": "own mail"}


def adapter_of(mailbox: str, recipe: dict[str, Any] = OURS) -> dict[str, Any]:
    """Return the arm that is the adapter of `mailbox`."""
    return {"what": "adapter", "of": mailbox, "recipe": recipe}


def run_of(mailbox: str, arm: dict[str, Any]) -> Run:
    """Return the run that judges `arm` on `mailbox`."""
    return Run(KIND, mailbox, {"arm": arm, "generation": GENERATION})


def cross_run(mailbox: str, of: str) -> Run:
    """Return the run that measures the losses of our adapter of `of` on the held-out mail of `mailbox`."""
    return Run(CROSS, mailbox, {"arm": adapter_of(of)})


def decide(result: dict[str, Any]) -> GateDecision:
    """Return what the gate says now about a finished run."""
    return decide_full(Evidence.model_validate(result["evidence"]), load_gate_config())


def measure_arm(run: Run, work: Path) -> dict[str, Any]:
    """Train what is missing, let it answer, and return the evidence; a training that diverged is a result."""
    arm, person = run.settings["arm"], read_mails(run.mailbox)
    own_mail = arm["what"] == "own mail"
    # The person's own mail has no losses of its own: those of their adapter stand there, and only what the
    # outputs decide counts.
    source = adapter_of(run.mailbox) if own_mail else arm
    try:
        folder = None if source["what"] == "base" else trained(source["of"], source["recipe"], work)
    except TrainingDiverged as exc:
        return {"diverged": str(exc), "step": exc.step}
    is_own = folder is not None and source["of"] == run.mailbox
    sample = (
        trained_sample(run.mailbox, folder, work)
        if folder is not None and is_own
        else spread_evenly(person.train, TRAIN_SAMPLE)
    )
    panel = panel_members(load_gate_config(), person.all)
    measured = _losses(folder, person.held_out, sample, panel, work)
    asked = run.settings["generation"]
    prompts = chosen_prompts(person.held_out, asked["outputs"])
    with engine(work) as serving:
        base = _outputs(None, prompts, serving, work, asked)
        judged = chosen_prompts(person.train, asked["judge_outputs"])
        to_training = [output.text for output in _outputs(None, judged, serving, work, asked)]
        if own_mail:
            candidate = [_as_output(e, Generated(text=e.output, stopped=True)) for e in prompts]
        else:
            candidate = _outputs(folder, prompts, serving, work, asked)
    evidence = gather_evidence(
        measured,
        person.train,
        person.held_out,
        Outputs(base=base, candidate=candidate, base_to_training=to_training),
        panel_texts(load_gate_config(), person.all),
        load_gate_config(),
    )
    return {
        "evidence": evidence.to_json_dict(),
        "held_out": numbers(measured.candidate.held_out),
        "base": numbers(measured.base.held_out),
        "course": {} if folder is None else read_course(folder),
    }


def measure_cross(run: Run, work: Path) -> dict[str, Any]:
    """Return the held-out losses of one mailbox under the adapter of another."""
    arm, held_out = run.settings["arm"], read_mails(run.mailbox).held_out
    folder = trained(arm["of"], arm["recipe"], work)
    return {
        "held_out": numbers(losses(folder, held_out, work)),
        "base": numbers(losses(None, held_out, work)),
    }


def _losses(
    folder: Path | None,
    held_out: Sequence[Example],
    sample: Sequence[Example],
    panel: Sequence[PanelMember],
    work: Path,
) -> MeasuredLosses:
    elsewhere = [e for persona in panel for e in spread_evenly(persona.held_out, PERSONA_SAMPLE)]

    def arm(of: Path | None) -> ArmLosses:
        return ArmLosses(
            held_out=losses(of, held_out, work),
            train=losses(of, sample, work),
            neutral=losses(of, neutral_examples(), work),
            swapped=losses(of, swapped_examples(), work),
            personas=losses(of, elsewhere, work),
        )

    others = references(panel, work)
    return MeasuredLosses(
        base=arm(None),
        candidate=arm(folder),
        references={name: losses(other, held_out, work) for name, other in others.items()},
    )


def _outputs(
    folder: Path | None,
    examples: Sequence[Example],
    serving: Serving,
    work: Path,
    asked: dict[str, Any],
) -> list[Generation]:
    found = answers(folder, examples, serving, work, seed=asked["seed"], max_tokens=asked["max_tokens"])
    return [_as_output(example, answer) for example, answer in zip(examples, found, strict=True)]


def _as_output(example: Example, answer: Generated) -> Generation:
    prompt = prompt_messages(example.instruction, example.input)[-1].content
    return Generation(prompt=prompt, text=answer.text, stopped=answer.stopped)
