"""What an archive stamped on a page and what its scanner left is nobody's word; what people type stays."""

from __future__ import annotations

import pytest

from tests.unit import test_mail_pasted as plain
from training.mail.archive import is_scanned_mailbox
from training.mail.clean import Learnt, clean_mailbox
from training.mail.explain import Explanation, explain
from training.schemas import Mail

SENDER = "Anna K. Berg"
FIRST = "The harbour board meets on Thursday and we have not written a word of the"
SECOND = "report that they asked for, so please send me your figures by noon."


def explained(body: str, sender: str = "") -> Explanation:
    mail = Mail(id="m", thread_id="t", position=0, body_text=body, sender=sender)
    return explain(mail, Learnt(scanned=True))


def own(body: str) -> str:
    return explained(body, sender=SENDER).own_words


@pytest.mark.parametrize(
    "dirt",
    [
        ".",
        "·",
        "',",
        "t . ,.,",
        "'li   ·   ·   .....",
        "'Ot._   __",
        " " * 60 + "[00'2]",
        " " * 60 + "1[00 11",
        " " * 40 + "P6/(b)(6)",
        " " * 40 + "P_6_'(b_)(_6__..J",
        "v" + " " * 20 + "~~'",
    ],
)
def test_a_line_of_dirt_within_a_sentence_is_cut(dirt: str) -> None:
    result = explained(f"{FIRST}\n{dirt}\n{SECOND}", sender=SENDER)
    assert {cut.reason for cut in result.cut} == {"archive stamp"}
    assert result.own_words.split() == [*FIRST.split(), *SECOND.split()]


@pytest.mark.parametrize("letter", ["J", "r"])
def test_a_letter_below_a_text_is_dirt_unless_the_author_signs_with_it(letter: str) -> None:
    assert own(f"{FIRST}\n{SECOND}\n\n      {letter}").split()[-1] == "noon."
    assert own(f"{FIRST}\n{SECOND}\n\nA").split()[-1] == "A"
    assert explained(f"{FIRST}\n{SECOND}\n\n{letter}").own_words.endswith(letter), "nobody knows their name"


@pytest.mark.parametrize(
    "typed",
    [
        "---",
        "* * *",
        "...",
        ":-)",
        "!!!",
        "1.",
        "a)",
        "$5",
        "42",
        "3 / 4",
        "No.",
        "Jo",
        "=====",
        "x = {y}",
    ],
)
def test_what_people_type_on_a_line_of_its_own_stays(typed: str) -> None:
    assert not explained(f"{FIRST}\n{SECOND}\n\n{typed}\n\n{SECOND}", sender=SENDER).cut


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("You can reach me at   I   P61(b)(6)   I      [ooz]", "You can reach me at"),
        (
            "Call Jo Lund at the office: PS/(b)(S)I they close at six.",
            "Call Jo Lund at the office: they close at six.",
        ),
        ("Here is the memo on the new crane. ;;;;;;;;;;;;;;;;;;", "Here is the memo on the new crane."),
        ("Here is the memo on the new crane. ; ; ; ; ; ; ; ; ATT", "Here is the memo on the new crane."),
    ],
)
def test_a_stamp_within_a_line_is_left_out_and_the_words_stay(line: str, kept: str) -> None:
    result = explained(f"{FIRST} {SECOND}\n\n{line}", sender=SENDER)
    assert result.own_words.split() == f"{FIRST} {SECOND} {kept}".split()
    words = [result.text[start:end] for start, end in result.own]
    assert " ".join(words).split() == result.own_words.split(), "spans and words agree"


def test_a_letter_that_a_person_writes_about_paragraphs_is_no_stamp() -> None:
    text = f"{FIRST} {SECOND} See section 6(b) of the rule, and pier P6a on the map; PS (by the way): thanks."
    assert own(text) == text


def test_a_few_stamped_mails_make_the_mailbox_a_scanned_one() -> None:
    stamped = f"{FIRST}\n     ARMS Email System\n{SECOND}"
    bodies = [f"Mail {n}. {FIRST} {SECOND}" for n in range(197)] + [stamped] * 3
    assert is_scanned_mailbox(bodies) and not is_scanned_mailbox(bodies[:-1])
    mails = [Mail(id=str(n), thread_id=str(n), position=n, body_text=body) for n, body in enumerate(bodies)]
    assert clean_mailbox(mails).learnt.scanned


@pytest.mark.parametrize(
    "typed",
    [
        "👍",
        "^^",
        "});",
        "{",
        "a[i] += b[j];",
        "|---|---|",
        "+---+---+",
        "6",
        "x",
        "A",
        "==== Next ====",
        "P6/2",
    ],
)
def test_in_mail_that_no_archive_scanned_everything_typed_stays(typed: str) -> None:
    body = f"{FIRST} {SECOND}\n\n{typed}\n\n{SECOND}"
    assert (plain.explained(body).own_words, plain.explained(body).cut) == (body, ())
    assert not plain.explained(f"{FIRST} {SECOND}\n\n{SECOND}\n\n{SECOND}\n\nx", sender=SENDER).cut


REMAINS = " In short we should arrange a briefing so that they see how much\nthey won by it."


def test_what_is_left_of_an_answered_mail_is_cut_behind_blank_lines_and_a_space() -> None:
    result = explained(f"{FIRST}\n{SECOND}\n\n\n\n{REMAINS}\n", sender=SENDER)
    assert [cut.reason for cut in result.cut] == ["quote"]
    assert result.own_words.split() == [*FIRST.split(), *SECOND.split()]


@pytest.mark.parametrize(
    "body",
    [
        f"{FIRST}\n{SECOND}\n\n\n{REMAINS}",
        f"{FIRST}\n{SECOND}\n\n\n\n{REMAINS.lstrip()}",
        f" {FIRST}\n {SECOND}\n\n\n\n{REMAINS}",
        f"{FIRST}\n{SECOND}\n\n\n\n    {REMAINS}",
    ],
    ids=["two blank lines", "at the margin", "everything has a space", "set in"],
)
def test_text_behind_blank_lines_stays_without_the_space(body: str) -> None:
    assert own(body).split() == [*FIRST.split(), *SECOND.split(), *REMAINS.split()]


def test_in_mail_that_no_archive_scanned_a_space_behind_blank_lines_says_nothing() -> None:
    assert not plain.explained(f"{FIRST}\n{SECOND}\n\n\n\n{REMAINS}", sender=SENDER).cut
