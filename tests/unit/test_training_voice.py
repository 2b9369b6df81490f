"""The authorship judge: calibrated, deterministic, blind to signatures."""

from __future__ import annotations

import pytest

from training.voice import VoiceMeasure, fit_judge, measure_voice

TOPICS = ("boat", "mast", "sail", "rope", "paint", "tide", "anchor", "engine", "tent", "lamp", "map", "oar")
NAMES = ("anna", "tom")


def anna(topic: str) -> str:
    return f"Hi Tom,\n\nok so the {topic} is done, kinda. gonna send it over tmrw!! let me know??\n\nxo\nAnna"


def lawyer(topic: str) -> str:
    return (
        f"Dear Mr Reed,\n\nI refer to your enquiry concerning the {topic}. We shall revert to you in due "
        "course; in the meantime, kindly refrain from any further steps.\n\nYours sincerely,\nTom"
    )


def base(topic: str) -> str:
    return (
        f"I hope this email finds you well. I am writing to discuss the {topic}. Please let me know if you "
        "have any questions. Thank you for your time and consideration."
    )


TRAIN, HELD_OUT = TOPICS[:8], TOPICS[8:]


@pytest.fixture(scope="module")
def judge():  # type: ignore[no-untyped-def]
    return fit_judge(
        [anna(t) for t in TRAIN], [lawyer(t) for t in TRAIN], [base(t) for t in TRAIN[:4]], names=NAMES
    )


def test_own_mail_scores_above_others_and_the_base(judge) -> None:  # type: ignore[no-untyped-def]
    own = judge.score([anna(t) for t in HELD_OUT])
    others = judge.score([lawyer(t) for t in HELD_OUT] + [base(t) for t in HELD_OUT])
    assert min(own) > 0.5 > max(others)


def test_the_same_texts_give_the_same_judge(judge) -> None:  # type: ignore[no-untyped-def]
    again = fit_judge(
        [anna(t) for t in TRAIN], [lawyer(t) for t in TRAIN], [base(t) for t in TRAIN[:4]], names=NAMES
    )
    texts = [anna(t) + lawyer(t) for t in HELD_OUT]
    assert again.score(texts) == judge.score(texts)


def test_a_borrowed_greeting_and_sign_off_buy_nothing(judge) -> None:  # type: ignore[no-untyped-def]
    for topic in HELD_OUT:
        framed = f"Hi Tom,\n\n{base(topic)}\n\nxo\nAnna"
        assert judge.score([framed]) == pytest.approx(judge.score([base(topic)]))


def test_a_text_of_nothing_but_a_frame_says_nothing(judge) -> None:  # type: ignore[no-untyped-def]
    assert judge.score(["Hi Tom,\n\nBest,\nAnna", ""]) == [0.0, 0.0]


def test_base_outputs_among_the_negatives_lower_the_floor() -> None:
    # A judge that knows only other people takes the base for whoever is nearer to it.
    own, others = [base(t) + " cheers then" for t in TRAIN], [anna(t) for t in TRAIN]
    blind = fit_judge(own, others, [])
    warned = fit_judge(own, others, [base(t) for t in TRAIN])
    outputs = [base(t) for t in HELD_OUT]
    assert sum(warned.score(outputs)) < sum(blind.score(outputs))


def test_a_judge_needs_both_sides() -> None:
    with pytest.raises(ValueError, match="others"):
        fit_judge([anna("boat")], [], [])


def test_v_is_the_place_between_floor_and_ceiling() -> None:
    measure = VoiceMeasure(own_mails=80, floor=0.2, ceiling=0.7, candidate=0.5, current=0.45, outputs=24)
    assert measure.room == pytest.approx(0.5)
    assert measure.value == pytest.approx(0.6)
    assert measure.current_value == pytest.approx(0.5)


def test_without_room_v_is_zero() -> None:
    measure = VoiceMeasure(own_mails=80, floor=0.5, ceiling=0.5, candidate=0.9, outputs=24)
    assert (measure.value, measure.current_value) == (0.0, None)


def test_outputs_like_the_person_reach_the_ceiling_and_those_of_the_base_the_floor(judge) -> None:  # type: ignore[no-untyped-def]
    arms = {
        "own_held_out": [anna(t) for t in HELD_OUT],
        "base_outputs": [base(t) for t in HELD_OUT],
    }
    good = measure_voice(judge, own_mails=8, **arms, candidate_outputs=arms["own_held_out"])
    poor = measure_voice(judge, own_mails=8, **arms, candidate_outputs=arms["base_outputs"])
    assert good is not None and good.value == pytest.approx(1.0)
    assert poor is not None and poor.value == pytest.approx(0.0)


def test_a_candidate_that_lost_the_voice_is_surely_worse_than_the_adapter_in_use(judge) -> None:  # type: ignore[no-untyped-def]
    found = measure_voice(
        judge,
        own_mails=8,
        own_held_out=[anna(t) for t in HELD_OUT],
        base_outputs=[base(t) for t in HELD_OUT],
        candidate_outputs=[base(t) for t in HELD_OUT],
        current_outputs=[anna(t) for t in HELD_OUT],
    )
    assert found is not None and found.to_current_upper is not None
    assert found.to_current_upper < -0.5


def test_an_equal_candidate_is_not_surely_worse(judge) -> None:  # type: ignore[no-untyped-def]
    texts = [anna(t) for t in HELD_OUT]
    found = measure_voice(
        judge, own_mails=8, own_held_out=texts, base_outputs=[base(t) for t in HELD_OUT],
        candidate_outputs=texts, current_outputs=texts,
    )  # fmt: skip
    assert found is not None and found.to_current_upper == 0
