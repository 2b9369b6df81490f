"""From what was measured and what was written to the evidence that the gate decides by.

Losses come from the GPU side, outputs from the serving engine. Mail text comes in and only numbers go out:
the authorship judge and the style profiles live as long as one call. (references/voice.md §3)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.dataset import prompt_messages
from training.full_gate import Evidence
from training.gate_config import GateConfig
from training.harm import Generation, measure_harm
from training.salutation import learn_names
from training.schemas import Example, MailLoss, MeasuredLosses
from training.skill import Skill, measure_specificity, paired_skill
from training.style import measure_style
from training.voice import VoiceMeasure, fit_judge, measure_voice


@dataclass(frozen=True)
class Outputs:
    """What the arms wrote. `base[i]`, `candidate[i]` and `current[i]` answer the same held-out prompt."""

    base: Sequence[Generation]
    candidate: Sequence[Generation]
    current: Sequence[Generation] | None = None
    """The adapter in use; None: there is none, or the engine does not hold it."""
    base_to_training: Sequence[str] = ()
    """The base's answers to training prompts: negatives of the judge, which must not be fitted on what it
    scores."""


def gather_evidence(
    losses: MeasuredLosses,
    train: Sequence[Example],
    held_out: Sequence[Example],
    outputs: Outputs,
    panel: Sequence[str],
    config: GateConfig,
    *,
    learnt: Sequence[Example] = (),
) -> Evidence:
    """Measure all five metrics; what cannot be measured is None. `panel` is the personas' own words.

    `learnt` is mail of earlier trainings that this one went on from: looked through for leaks and copies.

    Deterministic: the same losses, mail and outputs give the same evidence.
    """
    own_train, own_held_out = ([example.output for example in part] for part in (train, held_out))
    base, candidate, current = losses.base, losses.candidate, losses.current
    names = learn_names([*own_train, *own_held_out])
    return Evidence(
        held_out_mails=len(held_out),
        has_current=current is not None or outputs.current is not None,
        skill=_skill(base.held_out, candidate.held_out, config),
        to_current=_skill(current.held_out, candidate.held_out, config) if current else None,
        to_current_old=_skill(current.old, candidate.old, config) if current else None,
        specificity=measure_specificity(
            candidate.held_out,
            base.held_out,
            losses.references,
            base_on_reference_mail=base.personas,
            candidate_on_reference_mail=candidate.personas,
            confidence=config.specificity_confidence,
            draws=config.draws,
            seed=config.seed,
        ),
        voice=_voice(own_train, own_held_out, outputs, panel, names, config),
        style=measure_style(
            own_train=own_train,
            own_held_out=own_held_out,
            base_outputs=_texts(outputs.base),
            candidate_outputs=_texts(outputs.candidate),
            current_outputs=_texts(outputs.current) if outputs.current else None,
            names=names,
            confidence=config.confidence,
            draws=config.draws,
            seed=config.seed,
        ),
        harm=measure_harm(
            outputs.candidate,
            outputs.base,
            training_texts=[*own_train, *(e.output for e in learnt)],
            training_prompts=[_prompt(e) for e in (*train, *learnt)],
            base_held_out=base.held_out,
            candidate_held_out=candidate.held_out,
            base_train=base.train,
            candidate_train=candidate.train,
            base_neutral=base.neutral,
            candidate_neutral=candidate.neutral,
            base_swapped=base.swapped,
            candidate_swapped=candidate.swapped,
            own=[Generation(_prompt(e), e.output, stopped=True) for e in held_out],
            max_tokens=config.max_tokens,
            max_repeats=config.harm.max_repeats,
            confidence=config.confidence,
            draws=config.draws,
            seed=config.seed,
        ),
    )


def chosen_prompts(examples: Sequence[Example], count: int) -> tuple[Example, ...]:
    """Return `count` of the examples, or all when there are no more, spread evenly over their order.

    The middle of each of `count` equal parts: mails are in the order of time, and the newest or the oldest
    alone would be one project, one season or one correspondent.
    """
    size = len(examples)
    if size <= count:
        return tuple(examples)
    return tuple(examples[(2 * part + 1) * size // (2 * count)] for part in range(count))


def _skill(other: Sequence[MailLoss], model: Sequence[MailLoss], config: GateConfig) -> Skill | None:
    return paired_skill(other, model, confidence=config.confidence, draws=config.draws, seed=config.seed)


def _voice(
    own_train: Sequence[str],
    own_held_out: Sequence[str],
    outputs: Outputs,
    panel: Sequence[str],
    names: frozenset[str],
    config: GateConfig,
) -> VoiceMeasure | None:
    try:
        judge = fit_judge(own_train, panel, outputs.base_to_training, names=names)
    except ValueError:
        # Nothing is left of one side without greetings, sign-offs and names, or no two texts share a letter
        # group: there is no judge then, and the metric has no vote.
        return None
    return measure_voice(
        judge,
        own_mails=len(own_train),
        own_held_out=own_held_out,
        base_outputs=_texts(outputs.base),
        candidate_outputs=_texts(outputs.candidate),
        current_outputs=_texts(outputs.current) if outputs.current else None,
        confidence=config.confidence,
        draws=config.draws,
        seed=config.seed,
    )


def _prompt(example: Example) -> str:
    return prompt_messages(example.instruction, example.input)[-1].content


def _texts(outputs: Sequence[Generation]) -> list[str]:
    return [output.text for output in outputs]
