"""Greetings, sign-offs and names come off, and nothing else does."""

from __future__ import annotations

import pytest

from training.salutation import (
    greeting_class,
    learn_names,
    sign_off_class,
    strip_identity,
    take_apart,
    total_variation,
)

BODY = "The boat is afloat again.\nCome and look when you can."


@pytest.mark.parametrize(
    ("greeting", "kind"),
    [
        ("Hi Anna,", "hi"),
        ("hi anna", "hi"),
        ("Hello,", "hello"),
        ("Hey there!", "hey there"),
        ("Dear Mr van der Berg,", "dear"),
        ("Dear Anna and Tom:", "dear"),
        ("Good morning Tom -", "good morning"),
        ("Sehr geehrte Damen und Herren,", "sehr geehrte damen und herren"),
        ("Liebe Anna,", "liebe"),
        ("Bonjour Claire,", "bonjour"),
        ("Estimado señor Ruiz:", "estimado"),
        ("Gentile dottor Rossi,", "gentile"),
        ("Beste Joost,", "beste"),
        ("Olá Rita,", "olá"),
        ("Hej Saga!", "hej"),
        ("ahoy ines,", "ahoy"),
        ("Anna,", "name"),
        ("Anna, my dear,", "name"),
    ],
)
def test_a_greeting_comes_off_and_has_a_class(greeting: str, kind: str) -> None:
    text = f"{greeting}\n\n{BODY}"
    assert strip_identity(text) == BODY
    assert greeting_class(text) == kind


@pytest.mark.parametrize(
    ("sign_off", "kind"),
    [
        ("Best regards,\nAnna", "best regards"),
        ("Thanks,\n\nAnna", "thanks"),
        ("Viele Grüße\nAnna", "viele grüße"),
        ("Cordialement,\nClaire Dubois", "cordialement"),
        ("dry boots,\nmerrin", "dry boots"),
        ("Yours faithfully,\nC. Marchbanks\nRegistrar", "yours faithfully"),
        (
            "With the warmest of wishes and a full heart,\nPip",
            "with the warmest of wishes and a full heart",
        ),
        ("Anna", "name"),
        ("-a", "name"),
    ],
)
def test_a_sign_off_comes_off_and_has_a_class(sign_off: str, kind: str) -> None:
    text = f"{BODY}\n\n{sign_off}"
    assert strip_identity(text) == BODY
    assert sign_off_class(text) == kind


@pytest.mark.parametrize("initials", ["L.", "-a", "L. Haverkamp", "JB"])
def test_initials_need_no_blank_line(initials: str) -> None:
    assert strip_identity(f"{BODY}\n{initials}") == BODY
    assert sign_off_class(f"{BODY}\n{initials}") == "name"


@pytest.mark.parametrize(
    "text",
    [
        "Dear me, that was close. We lost the mast and then the rudder.",
        "Hi five to everybody who came, it was the best evening of the year",
        "No, I will not sign it.\nAsk somebody else.",
        "The boat is afloat again.\n\nYes.",
        "Best not to ask him today. He is tired.",
        "Thanks for the plan, it works for us and we will sign it on Friday.",
    ],
)
def test_a_text_without_a_frame_stays_as_it_is(text: str) -> None:
    assert strip_identity(text) == text
    assert (greeting_class(text), sign_off_class(text)) == ("none", "none")


def test_a_greeting_on_the_first_line_of_the_text_comes_off_alone() -> None:
    assert strip_identity("Hi Anna, can you come on Friday? We sail at ten.") == (
        "can you come on Friday? We sail at ten."
    )


def test_a_postscript_below_the_sign_off_is_body() -> None:
    frame = take_apart(f"ahoy ines,\n\n{BODY}\n\ndry boots,\nmerrin\n\np.s. the heron is back.")
    assert (frame.greeting, frame.sign_off) == ("ahoy ines,", "dry boots,\nmerrin")
    assert frame.body == f"{BODY}\n\np.s. the heron is back."


def test_names_and_addresses_come_out_of_the_body() -> None:
    text = "Ask Anna's brother or ANNA herself, or write to anna@example.org. Annabel knows too."
    assert strip_identity(text, ["anna"]) == "Ask brother or herself, or write to Annabel knows too."


def test_names_are_learnt_from_the_frames() -> None:
    texts = [
        "Dearest Anna,\n\nsee you at ten, or will you be late again today?\n\nBest,\nTom",
        "Hey Will,\n\nI will call, and you will see that it will work.\n\nCheers\nTom",
        "ahoy ines,\n\nthe mast is up and the sails are dry.\n\nTom",
    ]
    assert learn_names(texts) == {"anna", "tom", "ines"}  # "will" is a word of theirs


def test_known_names_alone_are_a_greeting_or_a_sign_off() -> None:
    text = f"Anna - {BODY}\nTom Tolquay"
    assert strip_identity(text, ["anna", "tom", "tolquay"]) == BODY


@pytest.mark.parametrize("text", ["", "\n\n", "Hi", "Anna,", "Best,\nTom", ","])
def test_odd_texts_are_taken_apart_without_an_error(text: str) -> None:
    take_apart(text)
    greeting_class(text), sign_off_class(text), strip_identity(text, ["anna"])


def test_total_variation_is_half_the_sum_of_differences() -> None:
    assert total_variation(["hi", "hi", "dear", "none"], ["hi", "dear"]) == pytest.approx(0.25)
    assert total_variation(["hi"], ["dear"]) == 1
    assert total_variation(["hi", "dear"], ["dear", "hi"]) == 0
