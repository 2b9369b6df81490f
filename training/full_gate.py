"""The whole gate: five metrics in, one decision out. Does this adapter go live?

    1 skill         predicts the person's held-out mail better than the base         hard
    2 specificity   this person's mail, not just mail                                vote
    3 voice         an authorship judge takes its outputs for the person's           vote
    4 style         its outputs have the person's habits                             vote
    5 harm          leaks, copies, overfitting, obedience, endings, neutral tasks    hard

Promoted when 1 and 5 hold, two of 2 to 4 pass, and none of these is significantly worse than the adapter in
use. Too little to measure is never a pass. Nothing here touches text: `Evidence` is numbers only, and the
same evidence always gives the same decision. (references/voice.md §3)
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

from training.decision_words import say_limit, say_number
from training.gate_config import COUNTED_OF, GateConfig, HarmLimits
from training.harm import HarmMeasure
from training.schemas import CheckRole, GateCheck, GateDecision, Outcome, Schema
from training.skill import Skill, Specificity
from training.style import StyleMeasure
from training.voice import VoiceMeasure

VOTING = ("specificity", "voice", "style")
_RELATIONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt}
_NEXT_STEP = {
    "skill": "Train again when there is more mail",
    "specificity": "Train again when there is more mail",
    "voice": "Train again when there is more mail",
    "style": "Train again when there is more mail",
    "harm": "Train again with fewer epochs or more dropout",
}
# Float arithmetic must not decide about a value that is exactly at its limit (2.60 - 2.50 < 0.10).
_ROUNDING = 1e-9


class Evidence(Schema):
    """Everything that was measured about one adapter. None: it could not be, or does not apply."""

    held_out_mails: int
    has_current: bool = False
    """An adapter of this person is in use; else the candidate is compared with the base alone."""
    skill: Skill | None = None
    """Over the base."""
    to_current: Skill | None = None
    """Over the adapter in use, on the new held-out mail."""
    to_current_old: Skill | None = None
    """The same on the frozen held-out mail of the first run."""
    specificity: Specificity | None = None
    voice: VoiceMeasure | None = None
    style: StyleMeasure | None = None
    harm: HarmMeasure | None = None


def decide_full(evidence: Evidence, config: GateConfig) -> GateDecision:
    """Decide by all five metrics. Never raises: what is missing makes it NOT_PROVEN."""
    checks = _finite(
        [
            *_skill_checks(evidence, config),
            *_specificity_checks(evidence, config),
            *_voice_checks(evidence, config),
            *_style_checks(evidence, config),
            *_harm_checks(evidence, config),
        ]
    )
    outcome, reason = _judge(evidence, config, checks)
    return GateDecision(
        outcome=outcome, reason=reason, numbers=_numbers(evidence, checks), checks=tuple(checks)
    )


def _judge(evidence: Evidence, config: GateConfig, checks: Sequence[GateCheck]) -> tuple[Outcome, str]:
    refused = Outcome.KEPT_CURRENT if evidence.has_current else Outcome.NOT_PROVEN
    if evidence.held_out_mails < config.min_held_out:
        return Outcome.NOT_PROVEN, (
            f"Not proven: {evidence.held_out_mails} held-out mails are too few to judge an adapter by; "
            f"{config.min_held_out} are needed. Import more sent mail and train again."
        )
    skill = evidence.skill
    measured = skill.mails if skill and math.isfinite(skill.mean + skill.lower) else 0
    if measured < config.min_held_out:
        return Outcome.NOT_PROVEN, (
            f"Not proven: the loss is a number on {measured} of {evidence.held_out_mails} held-out mails, "
            f"and {config.min_held_out} are needed. Lower learning_rate and train again."
        )
    threads = skill.threads if skill else 0
    if threads < config.min_held_out_threads:
        return Outcome.NOT_PROVEN, (
            f"Not proven: the {measured} held-out mails are of {threads} "
            f"{'conversation' if threads == 1 else 'conversations'}, which say little about any other; "
            f"{config.min_held_out_threads} conversations are needed. Import mail from more conversations "
            "and train again."
        )
    missing = _unmeasured_harm(evidence, checks)
    if missing:
        return Outcome.NOT_PROVEN, (
            f"Not proven: {missing} could not be measured, so nobody can say that the adapter does no harm. "
            "Retry the job; training is not repeated."
        )
    asked, answered = _asked_and_answered(evidence, config)
    needed = math.ceil(config.min_answered_share * asked - _ROUNDING)
    if answered < needed:
        return Outcome.NOT_PROVEN, (
            f"Not proven: only {answered} of {asked} prompts were answered by every arm, and {needed} are "
            "needed; the others do not fit into the engine's context. Lower max_tokens in the gate's "
            "configuration, or give the engine a longer context, and retry the job; training is not repeated."
        )
    failed = [check for check in checks if check.role is CheckRole.HARD and not check.met]
    if failed:
        return refused, _refusal(evidence, failed)
    votes = {metric: _passes(metric, checks) for metric in VOTING}
    passed = sum(vote is True for vote in votes.values())
    if passed < config.min_votes:
        lost = [c for c in checks if c.role is CheckRole.VOTE and not c.met]
        open_votes = [metric for metric, vote in votes.items() if vote is None]
        if passed + len(open_votes) >= config.min_votes:
            return Outcome.NOT_PROVEN, (
                f"Not proven: {passed} of specificity, voice and style passed and {' and '.join(open_votes)} "
                f"could not be told; {config.min_votes} must pass. Train again when there is more mail."
            )
        return refused, _refusal(
            evidence, lost, f"{passed} of specificity, voice and style passed ({config.min_votes} must), "
        )
    return Outcome.PROMOTED, _praise(evidence, passed)


def _passes(metric: str, checks: Sequence[GateCheck]) -> bool | None:
    """Return whether a voting metric passes; None when it has too little to vote by."""
    own = [check for check in checks if check.metric == metric and check.role is CheckRole.VOTE]
    return all(check.met for check in own) if own else None


def _refusal(evidence: Evidence, failed: Sequence[GateCheck], before: str = "") -> str:
    first, others = failed[0], len(failed) - 1
    head = "The adapter in use stays: " if evidence.has_current else "The adapter is not good enough: "
    more = f", and {others} more {'check' if others == 1 else 'checks'} failed" if others else ""
    return (
        f"{head}{before}{first.label} is {say_number(first.value, first.limit)} and must be "
        f"{say_limit(first)}{more}. {_NEXT_STEP[first.metric]}."
    )


def _praise(evidence: Evidence, passed: int) -> str:
    gain = evidence.skill.mean if evidence.skill else 0.0
    against = "the base"
    if evidence.has_current:
        against += (
            ", is no worse than the adapter in use"
            if evidence.to_current
            else " (the adapter in use gives no measurable loss)"
        )
    return (
        f"The adapter predicts the person's own mail better than {against} ({gain:.2f} nat per token on "
        f"{evidence.held_out_mails} held-out mails), passes {passed} of specificity, voice and style, "
        "and does no harm."
    )


# ---- the checks, metric by metric ------------------------------------------------------------------


def _skill_checks(e: Evidence, config: GateConfig) -> list[GateCheck]:
    limits, hard, checks = config.skill, CheckRole.HARD, []
    if e.skill:
        checks += [
            _check(
                "skill",
                "gain",
                e.skill.mean,
                ">=",
                limits.min_gain,
                hard,
                "the gain over the base (nat per token)",
            ),
            _check(
                "skill", "gainLower", e.skill.lower, ">", 0, hard, "the lower bound of the gain over the base"
            ),
        ]
    for name, skill, allowed, what in (
        ("Current", e.to_current, limits.max_loss_to_current, "new mail"),
        ("Old", e.to_current_old, limits.max_loss_to_current_old, "the first run's held-out mail"),
    ):
        if skill is None:
            continue
        few = name == "Old" and skill.mails < limits.min_old_mails
        role = CheckRole.SHOWN if few else hard
        to = f"against the adapter in use on {what}"
        checks += [
            _check("skill", f"gainOver{name}", skill.mean, ">=", -allowed, role, f"the gain {to}"),
            # A lower-bound rule would refuse equal adapters; this refuses those that are surely worse. It
            # also stands for specificity: with shared references, S(n) - S(c) is the same difference.
            _check(
                "skill",
                f"gainOver{name}Upper",
                skill.upper,
                ">=",
                0,
                role,
                f"the upper bound of the gain {to}",
            ),
        ]
    return checks


def _specificity_checks(e: Evidence, config: GateConfig) -> list[GateCheck]:
    found, limits = e.specificity, config.specificity
    if found is None:
        return []
    # References that give no number on most mails leave the few on which they do, which prove nothing.
    vote = CheckRole.SHOWN if found.mails < config.min_held_out else CheckRole.VOTE
    return [
        _check("specificity", "marginLower", found.lower, ">", limits.min_margin_lower, vote,
               "the lower bound of the margin over other people's adapters"),
        _check("specificity", "bestShare", found.best_share, ">=", limits.min_best_share, vote,
               "the share of mails that it predicts best of all"),
        _check("specificity", "ownMinusReference", found.own_minus_reference, ">=",
               limits.min_own_minus_reference, vote, "the skill on own mail minus that on other people's"),
    ]  # fmt: skip


def _voice_checks(e: Evidence, config: GateConfig) -> list[GateCheck]:
    found, limits = e.voice, config.voice
    if found is None:
        return []
    weak = found.own_mails < limits.min_own_mails or found.room < limits.min_room
    vote = CheckRole.SHOWN if weak else CheckRole.VOTE
    checks = [_check("voice", "voice", found.value, ">=", limits.min_value, vote, "the voice score")]
    if found.current_value is not None:
        apart = found.value - found.current_value
        checks.append(
            _check("voice", "voiceOverCurrent", apart, ">=", -limits.max_loss_to_current, vote,
                   "the voice score against the adapter in use")
        )  # fmt: skip
    if found.to_current_upper is not None:
        checks.append(
            _check("voice", "voiceOverCurrentUpper", found.to_current_upper, ">=", 0,
                   CheckRole.SHOWN if weak else CheckRole.HARD,
                   "the upper bound of the voice score against the adapter in use")
        )  # fmt: skip
    return checks


def _style_checks(e: Evidence, config: GateConfig) -> list[GateCheck]:
    found, limits = e.style, config.style
    if found is None:
        return []
    weak = found.gap < limits.min_gap
    vote = CheckRole.SHOWN if weak else CheckRole.VOTE
    checks = [
        _check("style", "gapClosed", found.gap_closed, ">=", limits.min_gap_closed, vote,
               "the share of the style gap that is closed"),
        _check("style", "lengthRatioMin", found.length_ratio, ">=", limits.min_length_ratio, vote,
               "the length of its mails against the person's"),
        _check("style", "lengthRatioMax", found.length_ratio, "<=", limits.max_length_ratio, vote,
               "the length of its mails against the person's"),
        _check("style", "greetingVariation", found.greeting_variation, "<=", limits.max_class_variation, vote,
               "the difference in greetings"),
        _check("style", "signOffVariation", found.sign_off_variation, "<=", limits.max_class_variation, vote,
               "the difference in sign-offs"),
    ]  # fmt: skip
    if found.current is not None:
        farther = found.candidate - found.current
        checks.append(
            _check("style", "styleFartherThanCurrent", farther, "<=", limits.max_loss_to_current, vote,
                   "the style distance beyond that of the adapter in use")
        )  # fmt: skip
    if found.to_current_lower is not None:
        checks.append(
            _check("style", "styleFartherThanCurrentLower", found.to_current_lower, "<=", 0,
                   CheckRole.SHOWN if weak else CheckRole.HARD,
                   "the lower bound of the style distance beyond that of the adapter in use")
        )  # fmt: skip
    return checks


def _harm_checks(e: Evidence, config: GateConfig) -> list[GateCheck]:
    found, limits, hard = e.harm, config.harm, CheckRole.HARD
    if found is None:
        return []
    excused = min(found.repeating_base or 0, int(limits.max_repeating_share * found.outputs + _ROUNDING))
    checks = [
        _check("harm", "leaks", found.leaks, "<=", limits.max_leaks, hard,
               "the number of outputs that leak an address, number, link or code"),
        _check("harm", "copies", found.copies, "<=", _in_proportion(limits.max_copies, found), hard,
               "the number of outputs that copy a training mail"),
        _check("harm", "empty", found.empty, "<=", _in_proportion(limits.max_empty, found), hard,
               "the number of empty outputs"),
        _check("harm", "stopShare", found.stop_share, ">=", _least_stop_share(found, limits), hard,
               "the share of outputs that end by themselves"),
        _check("harm", "repeating", found.repeating, "<=",
               max(_in_proportion(limits.max_repeating, found), excused), hard,
               "the number of outputs that repeat themselves"),
    ]  # fmt: skip
    for name, value, limit, label in (
        ("overfitGap", found.overfit_gap, limits.max_overfit_gap, "the overfit gap (nat per token)"),
        ("membershipAuc", found.membership_auc, limits.max_membership_auc, "the membership score"),
        (
            "promptUseLost",
            found.prompt_use_lost,
            limits.max_prompt_use_lost,
            "the use of neutral prompts that is lost (nat per token)",
        ),
    ):
        if value is not None:
            checks.append(_check("harm", name, value, "<=", limit, hard, label))
    if found.recall_upper is not None:
        few = found.facts < limits.min_facts
        checks.append(
            _check("harm", "recallUpper", found.recall_upper, ">=", -limits.max_recall_loss,
                   CheckRole.SHOWN if few else hard,
                   "the upper bound of the recall of the prompts' names, numbers and dates against base and "
                   "person")
        )  # fmt: skip
    return checks


def _in_proportion(limit: int, found: HarmMeasure) -> int:
    """Return a limit that was set for 24 outputs as one for as many as there are: rounded, halves down, and
    never more than for 24. (20 to 23 outputs, of who has no more held-out mail, keep the limits of 24.)"""
    return min(limit, math.ceil(limit * found.outputs / COUNTED_OF - 0.5))


def _asked_and_answered(evidence: Evidence, config: GateConfig) -> tuple[int, int]:
    """Return how many held-out prompts were asked (training.evidence.chosen_prompts), and answered by all."""
    answered = evidence.harm.outputs if evidence.harm else 0
    return min(evidence.held_out_mails, config.outputs), answered


def _least_stop_share(found: HarmMeasure, limits: HarmLimits) -> float:
    """Return the share of outputs that must end by themselves: whoever writes longer mails than the limit of
    tokens leaves room for is expected to run into it as often."""
    if found.own_stop_share is None:
        return limits.min_stop_share
    return max(0.0, min(limits.min_stop_share, found.own_stop_share - (1 - limits.min_stop_share)))


def _unmeasured_harm(evidence: Evidence, checks: Sequence[GateCheck]) -> str:
    """Return what of the fifth metric is missing, in words, or "". Prompts without a fact are no fault."""
    if evidence.harm is None:
        return "its outputs"
    measured = {check.name for check in checks if check.metric == "harm"}
    needed = {"overfitGap": "overfitting", "membershipAuc": "membership", "promptUseLost": "neutral tasks"}
    return " and ".join(words for name, words in needed.items() if name not in measured)


# ---- numbers ---------------------------------------------------------------------------------------


def _check(
    metric: str, name: str, value: float, relation: str, limit: float, role: CheckRole, label: str
) -> GateCheck:
    slack = {">=": _ROUNDING, "<=": -_ROUNDING, ">": 0.0}[relation]
    met = bool(_RELATIONS[relation](value + slack, limit))
    return GateCheck(
        metric=metric, name=name, value=value, limit=limit, relation=relation, met=met, role=role, label=label
    )


def _finite(checks: Sequence[GateCheck]) -> list[GateCheck]:
    """Leave out what is no number (NaN is no JSON, and PostgreSQL refuses it), and all votes beside it.

    A metric that was measured in part has no vote; without this, what is left of it would pass.
    """
    torn = {c.metric for c in checks if c.role is CheckRole.VOTE and not math.isfinite(c.value)}
    return [
        check
        for check in checks
        if math.isfinite(check.value) and not (check.role is CheckRole.VOTE and check.metric in torn)
    ]


def _numbers(e: Evidence, checks: Sequence[GateCheck]) -> dict[str, float]:
    """Return every value that was checked and those that explain them, all finite."""
    numbers: dict[str, float | None] = {"heldOutMails": e.held_out_mails}
    if e.skill:
        numbers |= {
            "gainSpread": e.skill.spread,
            "gainThreads": e.skill.threads,
        }
    if e.specificity:
        numbers |= {"margin": e.specificity.margin, "bestShareByChance": e.specificity.chance}
    if e.voice:
        numbers |= {
            "voiceFloor": e.voice.floor,
            "voiceCeiling": e.voice.ceiling,
            "voiceOfOutputs": e.voice.candidate,
            "voiceOfCurrent": e.voice.current,
        }
    if e.style:
        numbers |= {
            "styleOfBase": e.style.base,
            "styleOfOutputs": e.style.candidate,
            "styleOfCurrent": e.style.current,
            "styleOfOwn": e.style.own,
        }
    if e.harm:
        numbers |= {
            "outputs": e.harm.outputs,
            "factRecall": e.harm.fact_recall,
            "factRecallOfBase": e.harm.fact_recall_base,
            "factRecallOfPerson": e.harm.fact_recall_own,
            "stopShareOfPerson": e.harm.own_stop_share,
            "repeatingOfBase": e.harm.repeating_base,
            "facts": e.harm.facts,
        }
    numbers |= {check.name: check.value for check in checks}
    return {
        name: float(value) for name, value in numbers.items() if value is not None and math.isfinite(value)
    }
