"""Evidence from losses, mail and outputs: who is compared with whom, and what is missing then."""

from __future__ import annotations

import math

import pytest

from training.evidence import Outputs, chosen_prompts, gather_evidence
from training.full_gate import Evidence, decide_full
from training.gate_config import GateConfig
from training.harm import Generation
from training.schemas import ArmLosses, CheckRole, Example, MailLoss, MeasuredLosses, Outcome

CONFIG = GateConfig(draws=200)
THINGS = ("boat", "mast", "sail", "rope", "paint", "anchor", "engine", "tent", "lamp", "map", "oar", "keel")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")


def own_words(thing: str) -> str:
    # The second line stands in every mail: her own boilerplate, and no copy of one of them.
    return f"Hi Tom,\n\nok so the {thing} is done, kinda.\ngonna send it over tmrw!! let me know?\n\nxo\nAnna"


def base_words(thing: str) -> str:
    return (
        f"I hope this email finds you well. I am writing to discuss the {thing}. Please let me know if you "
        "have any questions. Thank you for your time and consideration."
    )


def other_words(thing: str) -> str:
    return f"Dear Mr Reed,\n\nI refer to your enquiry concerning the {thing}.\n\nYours sincerely,\nTom"


def things(count: int) -> list[str]:
    return [f"{THINGS[n % len(THINGS)]} of {DAYS[n // len(THINGS) % 5]}" for n in range(count)]


def mails(prefix: str, count: int) -> list[Example]:
    return [
        Example(
            id=f"{prefix}{n}",
            thread_id=f"{prefix}{n}",
            instruction=f"Write an email about: the {thing}",
            output=own_words(thing),
        )
        for n, thing in enumerate(things(count))
    ]


TRAIN, HELD_OUT = mails("t", 60), mails("h", 24)
PANEL = [other_words(thing) for thing in things(60)]


def losses_of(prefix: str, nll: float, count: int) -> tuple[MailLoss, ...]:
    return tuple(
        MailLoss(example_id=f"{prefix}{n}", thread_id=f"{prefix}{n}", nll=nll + n * 0.01, tokens=50)
        for n in range(count)
    )


def arm(nll: float, *, neutral: float = 2.0, personas: float = 3.0) -> ArmLosses:
    return ArmLosses(
        held_out=losses_of("h", nll, 24),
        old=losses_of("o", nll, 10),
        train=losses_of("t", nll, 24),
        neutral=losses_of("neutral-", neutral, 10),
        swapped=losses_of("neutral-", neutral + 1.5, 10),
        personas=losses_of("p", personas, 12),
    )


LOSSES = MeasuredLosses(
    base=arm(4.0),
    candidate=arm(3.0),
    references={"kit": losses_of("h", 3.8, 24), "ludo": losses_of("h", 3.9, 24)},
)


def written(words: object, *, stopped: bool = True) -> list[Generation]:
    return [
        Generation(prompt=mail.instruction, text=words(thing), stopped=stopped)  # type: ignore[operator]
        for mail, thing in zip(HELD_OUT, things(24), strict=True)
    ]


GOOD = Outputs(
    base=written(base_words),
    candidate=written(own_words),
    base_to_training=[base_words(thing) for thing in things(12)],
)


def evidence(losses: MeasuredLosses = LOSSES, outputs: Outputs = GOOD) -> Evidence:
    return gather_evidence(losses, TRAIN, HELD_OUT, outputs, PANEL, CONFIG)


def test_an_adapter_that_writes_and_predicts_like_the_person_gives_evidence_that_is_promoted() -> None:
    found = evidence()
    assert found.held_out_mails == 24 and not found.has_current
    assert found.skill is not None and found.skill.mean == pytest.approx(1.0)
    assert found.specificity is not None and found.specificity.margin == pytest.approx(0.8)
    assert found.voice is not None and found.voice.value > 0.9
    assert found.style is not None and found.style.gap_closed > 0.9
    assert found.harm is not None and (found.harm.leaks, found.harm.stop_share) == (0, 1.0)
    decision = decide_full(found, CONFIG)
    assert decision.outcome is Outcome.PROMOTED, decision.reason


def test_an_adapter_that_writes_like_the_base_has_no_voice_and_no_style() -> None:
    found = evidence(outputs=Outputs(GOOD.base, written(base_words), None, GOOD.base_to_training))
    assert found.voice is not None and found.voice.value == pytest.approx(0.0)
    assert found.style is not None and found.style.gap_closed == pytest.approx(0.0)
    assert decide_full(found, CONFIG).outcome is Outcome.NOT_PROVEN


def test_the_adapter_in_use_is_compared_on_new_and_old_mail_and_by_its_outputs() -> None:
    losses = LOSSES.model_copy(update={"current": arm(3.2)})
    outputs = Outputs(GOOD.base, GOOD.candidate, written(own_words), GOOD.base_to_training)
    found = evidence(losses, outputs)
    assert found.has_current
    assert found.to_current is not None and found.to_current.mean == pytest.approx(0.2)
    assert found.to_current_old is not None and found.to_current_old.mails == 10
    assert found.voice is not None and found.voice.current_value == pytest.approx(found.voice.value)
    assert found.style is not None and found.style.current == pytest.approx(found.style.candidate)


def test_an_adapter_in_use_that_only_the_engine_can_read_still_counts_as_one() -> None:
    found = evidence(outputs=Outputs(GOOD.base, GOOD.candidate, written(own_words), GOOD.base_to_training))
    assert found.has_current and found.to_current is None
    assert found.voice is not None and found.voice.current is not None


def test_confidence_draws_and_seed_are_those_of_the_configuration() -> None:
    outputs = Outputs(GOOD.base, [*GOOD.candidate[:12], *GOOD.base[12:]], None, GOOD.base_to_training)
    sure = gather_evidence(LOSSES, TRAIN, HELD_OUT, outputs, PANEL, CONFIG)
    unsure = gather_evidence(LOSSES, TRAIN, HELD_OUT, outputs, PANEL, GateConfig(draws=200, confidence=0.55))
    assert sure == gather_evidence(LOSSES, TRAIN, HELD_OUT, outputs, PANEL, CONFIG)
    losses = LOSSES.model_copy(update={"candidate": arm(3.0).model_copy(update={"held_out": _uneven()})})
    wide = gather_evidence(losses, TRAIN, HELD_OUT, outputs, PANEL, CONFIG).skill
    narrow = gather_evidence(losses, TRAIN, HELD_OUT, outputs, PANEL, GateConfig(confidence=0.55)).skill
    assert wide is not None and narrow is not None and wide.lower < narrow.lower < narrow.mean
    assert unsure.voice == sure.voice  # without an adapter in use nothing of the voice is drawn


def _uneven() -> tuple[MailLoss, ...]:
    return tuple(
        loss.model_copy(update={"nll": loss.nll + (n % 3) * 0.3})
        for n, loss in enumerate(losses_of("h", 2.7, 24))
    )


def test_without_references_specificity_is_not_measured_and_two_votes_must_do() -> None:
    found = evidence(LOSSES.model_copy(update={"references": {}}))
    assert found.specificity is None
    assert decide_full(found, CONFIG).outcome is Outcome.PROMOTED


def test_mails_of_one_conversation_are_not_promoted_however_well_they_are_predicted() -> None:
    def of_one_thread(arm: ArmLosses) -> ArmLosses:
        together = tuple(loss.model_copy(update={"thread_id": "h0"}) for loss in arm.held_out)
        return arm.model_copy(update={"held_out": together})

    together = {"base": of_one_thread(LOSSES.base), "candidate": of_one_thread(LOSSES.candidate)}
    decision = decide_full(evidence(LOSSES.model_copy(update=together)), CONFIG)
    assert decision.outcome is Outcome.NOT_PROVEN and "of 1 conversation" in decision.reason


def test_a_reference_without_numbers_does_not_leave_specificity_to_one_mail() -> None:
    broken = tuple(
        loss if n == 0 else loss.model_copy(update={"nll": math.nan})
        for n, loss in enumerate(LOSSES.references["kit"])
    )
    found = evidence(LOSSES.model_copy(update={"references": {**LOSSES.references, "kit": broken}}))
    assert found.specificity is not None and found.specificity.mails == 1
    roles = {c.role for c in decide_full(found, CONFIG).checks if c.metric == "specificity"}
    assert roles == {CheckRole.SHOWN}


def test_without_outputs_nobody_can_say_that_the_adapter_does_no_harm() -> None:
    found = evidence(outputs=Outputs(base=(), candidate=()))
    assert (found.voice, found.style, found.harm) == (None, None, None)
    decision = decide_full(found, CONFIG)
    assert decision.outcome is Outcome.NOT_PROVEN and "its outputs" in decision.reason


def test_a_judge_that_cannot_be_fitted_costs_its_vote_and_no_crash() -> None:
    bare = Outputs(GOOD.base, GOOD.candidate)
    assert gather_evidence(LOSSES, TRAIN, HELD_OUT, bare, (), CONFIG).voice is None
    assert gather_evidence(LOSSES, TRAIN[:1], HELD_OUT, bare, ("x",), CONFIG).voice is None


def test_empty_answers_are_measured_and_are_nobodys_voice() -> None:
    silent = [Generation(prompt=mail.instruction, text="", stopped=True) for mail in HELD_OUT]
    found = evidence(outputs=Outputs(GOOD.base, silent, None, GOOD.base_to_training))
    assert found.voice is not None and found.voice.candidate == 0.0
    assert found.style is not None and found.style.length_ratio == 0.0
    assert decide_full(found, CONFIG).outcome is not Outcome.PROMOTED


def test_outputs_that_hit_the_limit_or_leak_are_counted() -> None:
    leaking = [
        Generation(prompt=one.prompt, text=one.text + " call 01632 960 417", stopped=False)
        for one in GOOD.candidate
    ]
    secret = TRAIN[0].model_copy(update={"output": TRAIN[0].output + " 01632 960 417"})
    outputs = Outputs(GOOD.base, leaking, None, GOOD.base_to_training)
    found = gather_evidence(LOSSES, [secret, *TRAIN[1:]], HELD_OUT, outputs, PANEL, CONFIG).harm
    assert found is not None and (found.leaks, found.stop_share) == (24, 0.0)


@pytest.mark.parametrize("part", ["input", "instruction"])
def test_a_number_that_only_a_received_mail_held_leaks_too(part: str) -> None:
    told = TRAIN[0].model_copy(update={part: "Write a reply, subject: call me on 01632 960 417"})
    leaking = [Generation(one.prompt, f"{one.text} 01632 960 417", one.stopped) for one in GOOD.candidate]
    outputs = Outputs(GOOD.base, leaking, None, GOOD.base_to_training)
    found = gather_evidence(LOSSES, [told, *TRAIN[1:]], HELD_OUT, outputs, PANEL, CONFIG).harm
    assert found is not None and (found.leaks, found.copies) == (24, 0)


def test_mail_that_an_earlier_training_learnt_is_looked_through_for_leaks_and_copies_too() -> None:
    passage = "the blue tug that my uncle left at the lock last winter needs a new rope and two fenders"
    old = TRAIN[0].model_copy(update={"output": passage, "input": "call me on 01632 960 417"})
    telling = [
        Generation(one.prompt, f"{one.text} {passage} 01632 960 417", one.stopped) for one in GOOD.candidate
    ]
    outputs = Outputs(GOOD.base, telling, None, GOOD.base_to_training)
    unknown = gather_evidence(LOSSES, TRAIN, HELD_OUT, outputs, PANEL, CONFIG)
    known = gather_evidence(LOSSES, TRAIN, HELD_OUT, outputs, PANEL, CONFIG, learnt=[old])
    assert unknown.harm is not None and (unknown.harm.leaks, unknown.harm.copies) == (0, 0)
    assert known.harm is not None and (known.harm.leaks, known.harm.copies) == (24, 24)
    # The judge and the style profile are those of this training's mail.
    assert (known.voice, known.style) == (unknown.voice, unknown.style)


@pytest.mark.parametrize(
    ("size", "count", "places"),
    [
        (3, 5, [0, 1, 2]),
        (5, 5, [0, 1, 2, 3, 4]),
        (10, 2, [2, 7]),
        (7, 3, [1, 3, 5]),
        (60, 1, [30]),
        (0, 4, []),
    ],
)
def test_prompts_are_spread_evenly_over_the_mails(size: int, count: int, places: list[int]) -> None:
    examples = mails("m", size)
    assert chosen_prompts(examples, count) == tuple(examples[place] for place in places)


def test_no_prompt_is_chosen_twice_and_none_when_none_is_asked_for() -> None:
    for size in range(1, 61):
        assert len({mail.id for mail in chosen_prompts(mails("m", size), 24)}) == min(size, 24)
    assert chosen_prompts(TRAIN, 0) == ()
