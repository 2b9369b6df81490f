"""Instructions by playback: what the base is asked, which answers are taken, and whose they become."""

from __future__ import annotations

from typing import Any

import pytest

from training.config import DataConfig, load_train_config
from training.dataset import Prepared
from training.playback import (
    PLAYBACK_OPTIONS,
    Fault,
    can_be_asked,
    expected_sentence,
    playback_key,
    playback_messages,
    read_answer,
    with_instructions,
)
from training.schemas import DataReport, Example, Generated

MAIL = (
    "Hi Zoë,\n\nThe lighthouse keys are with Mr Okafor until Tuesday. Could you fetch them and bring the "
    "invoice over 2,310.50 along?\n\nBest,\nMerrin"
)
GOOD = "Write an email to ask Zoë to fetch the lighthouse keys from Mr Okafor and to bring the invoice."
DIGEST = "sha256:" + "1" * 64


def example(output: str = MAIL, **fields: Any) -> Example:
    return Example(**{"id": "m1", "thread_id": "t1", "instruction": "Write an email about: Keys"} | fields,
                   output=output)  # fmt: skip


def reply(output: str = MAIL) -> Example:
    return example(
        output, instruction="Write a reply to the email below, subject: Keys", input="Where are they?"
    )


def answered(text: str, stopped: bool = True) -> Generated:
    return Generated(text=text, stopped=stopped)


# ---- what is asked ---------------------------------------------------------------------------------


def test_the_base_is_shown_the_mail_without_its_sign_off_and_the_received_mail() -> None:
    asked = playback_messages(reply())
    assert asked[0].role == "system"
    assert [m.role for m in asked[1:]] == ["user", "assistant"] * 3 + ["user"]
    assert asked[-1].content.startswith("The email received:\n\nWhere are they?\n\nThe reply:\n\nHi Zoë,")
    assert "Merrin" not in asked[-1].content
    assert all("so that" in m.content for m in asked if m.role == "assistant")


def test_a_mail_of_any_length_makes_a_bounded_request_and_cannot_open_a_turn() -> None:
    endless = example("<|im_end|>" + "word " * 5000, input="x" * 50_000)
    last = playback_messages(endless)[-1].content
    assert len(last) < 2500
    assert "<|im_end|>" not in last


def test_only_mail_in_the_language_of_the_requests_is_asked_about() -> None:
    german = "Ich bringe die Schlüssel am Dienstag mit, wenn du das noch willst und nicht zu müde bist."
    assert can_be_asked(example())
    assert not can_be_asked(example(german))


def test_the_key_changes_with_the_mail_the_received_mail_and_the_base_and_with_nothing_else() -> None:
    key = playback_key(playback_messages(example()), DIGEST)
    assert key == playback_key(playback_messages(example(id="m2", thread_id="t2")), DIGEST)
    others = [
        playback_key(playback_messages(example(MAIL + "\nPS: bring a torch")), DIGEST),
        playback_key(playback_messages(reply()), DIGEST),
        playback_key(playback_messages(example()), "sha256:" + "2" * 64),
    ]
    assert len({key, *others}) == 4
    assert "Zoë" not in key


def test_asking_is_deterministic_and_bounded() -> None:
    assert (PLAYBACK_OPTIONS.temperature, PLAYBACK_OPTIONS.max_tokens) == (0, 80)
    assert PLAYBACK_OPTIONS.seed is not None


# ---- what is accepted ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "instruction"),
    [
        (GOOD, GOOD),
        (f'"{GOOD}"', GOOD),
        (f"Instruction:\n{GOOD}", GOOD),
        ("Please write a message to Zoë about the lighthouse keys.",
         "Write an email to Zoë about the lighthouse keys."),
        ("Ask Zoë to fetch the lighthouse keys.", "Write an email to ask Zoë to fetch the lighthouse keys."),
        ("Write a reply so that Zoë fetches the keys.", "Write an email so that Zoë fetches the keys."),
    ],
)  # fmt: skip
def test_a_good_answer_becomes_a_request_in_the_words_of_the_app(said: str, instruction: str) -> None:
    assert read_answer(answered(said), example()) == instruction


@pytest.mark.parametrize(
    "said",
    [
        "Write a reply so that Zoë fetches the keys.",
        "Write a reply to the email below so that Zoë fetches the keys.",
        "Write an email so that Zoë fetches the keys.",
    ],
)
def test_a_reply_is_asked_for_as_the_app_asks_for_replies(said: str) -> None:
    wanted = "Write a reply to the email below so that Zoë fetches the keys."
    assert read_answer(answered(said), reply()) == wanted


def test_a_reply_to_a_mail_that_is_not_at_hand_points_at_nothing_below() -> None:
    lost = example(instruction="Write a reply about: Keys")
    assert read_answer(answered(GOOD), lost) == GOOD.replace("an email", "a reply")


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("", Fault.EMPTY),
        ("Write an email.", Fault.EMPTY),
        (GOOD + " And so on." * 3, Fault.TOO_LONG),
        ("Write an email to ask for the keys " + "and the keys " * 20, Fault.TOO_LONG),
        ("Écris un message pour demander à Zoë de chercher les clés du phare.", Fault.LANGUAGE),
        ("Hi Zoë, the lighthouse keys are with Mr Okafor.", Fault.NO_REQUEST),
        ("The lighthouse keys should be fetched by Zoë.", Fault.NO_REQUEST),
        ("Tell Zoë that the lighthouse keys are with Mr Okafor until Tuesday.", Fault.COPIES),
        ("Write an email to ask Zoë to come by on Friday for the lighthouse keys.", Fault.PARROTS),
        ("Write an email to ask Zoë to fetch the lighthouse keys from Barbara.", Fault.INVENTED),
        ("Write an email to ask Zoë to bring the invoice over 999.", Fault.INVENTED),
        ("Write an email to ask for a refund and a replacement.", Fault.UNRELATED),
        ("Write an email to thank them and to ask if they are well.", Fault.UNRELATED),
    ],
)  # fmt: skip
def test_a_bad_answer_is_refused_by_its_reason(said: str, fault: Fault) -> None:
    assert read_answer(answered(said), example()) is fault


def test_an_answer_that_was_cut_off_is_refused() -> None:
    assert read_answer(answered(GOOD, stopped=False), example()) is Fault.TOO_LONG


def test_a_fact_of_the_received_mail_may_stand_in_the_instruction_of_its_reply() -> None:
    asked = example(instruction="Write a reply to the email below.", input="Is Barbara coming on Sunday?")
    said = "Write a reply so that Zoë fetches the keys and Barbara comes on Sunday."
    assert not isinstance(read_answer(answered(said), asked), Fault)


def test_a_number_of_the_mail_is_known_with_its_ending_and_i_am_is_nobody_s_name() -> None:
    mail = example("Would moving the deadline to September 15th work for you perhaps? I am late.")
    said = "Write an email to ask if you can move the deadline to September 15th, because I'm late."
    assert read_answer(answered(said), mail) == said
    assert read_answer(answered(said.replace("15th", "5th")), mail) is Fault.INVENTED


# ---- examples --------------------------------------------------------------------------------------


def test_a_mail_has_one_instruction_in_every_part_and_a_bad_answer_leaves_its_subject() -> None:
    ids = ("train", "held", "mute", "cut", "other")
    one, held, mute, cut, other = (example(id=id) for id in ids)
    report = DataReport(sent=5, usable=5, eligible=True, reason="Enough.")
    prepared = Prepared((one, mute, cut, other), (held,), report, old=(held,))
    answers = {
        "train": answered(GOOD),
        "held": answered(GOOD),
        "mute": None,
        "cut": answered(GOOD, stopped=False),
    }
    done = with_instructions(prepared, answers)
    assert [e.instruction for e in done.prepared.train] == [GOOD, *["Write an email about: Keys"] * 3]
    assert done.prepared.held_out == done.prepared.old
    assert done.prepared.held_out[0].instruction == GOOD
    assert [e.output for e in done.prepared.train] == [MAIL] * 4
    assert (done.written, done.faults) == (2, {Fault.UNANSWERED: 1, Fault.TOO_LONG: 1, Fault.LANGUAGE: 1})
    assert done.sentence == (
        "The base model wrote the instructions of 2 of 5 mails; the others keep their subject, because the "
        "answer was: 1 not answered by the engine, 1 too long, 1 not in English."
    )


def test_what_playback_takes_is_said_before_any_model_is_asked() -> None:
    report = DataReport(sent=2, usable=2, eligible=True, reason="Enough.")
    german = example("Ich bringe die Schlüssel am Dienstag mit, wenn du das noch willst.", id="m2")
    prepared = Prepared(tuple(example(id=f"e{n}") for n in range(90)), (german,), report)
    assert "of 90 mails, about 3 min (" in expected_sentence(prepared, cpu_tokens_per_second=400)
    assert "of 90 mails (" in expected_sentence(prepared, None)


def test_the_subject_is_the_default_and_the_preset_asks_for_playback() -> None:
    assert DataConfig().instructions == "subject"
    assert load_train_config("playback").data.instructions == "playback"
