"""Long passages in quotation marks are somebody's words; titles, sayings and stray marks are the author's."""

from __future__ import annotations

import pytest

from tests.unit.test_mail_pasted import INTRO, RULE, explained

LONG = "the fee for a mooring is set by the board once a year and covers the upkeep of the quay"


@pytest.mark.parametrize("marks", ['""', "“”", "„“", "«»"])
def test_a_long_quotation_within_a_sentence_leaves_its_marks(marks: str) -> None:
    left, right = marks
    result = explained(f"{INTRO} The rule says {left}{LONG}{right} and nothing else, so we may ask again.")
    assert result.own_words == f"{INTRO} The rule says {left}…{right} and nothing else, so we may ask again."
    assert [(cut.reason, result.text[cut.text_start : cut.text_end]) for cut in result.cut] == [
        ("quotation", LONG)
    ]


def test_a_quotation_over_several_lines_is_one_hole() -> None:
    wrapped = LONG.replace(" is set", "\nis set").replace(" covers", "\ncovers")
    result = explained(f'{INTRO}\n\nThe rule says "{wrapped}" and nothing else.\n\nWhat do you think?')
    assert result.own_words == f'{INTRO}\n\nThe rule says "…" and nothing else.\n\nWhat do you think?'
    assert " ".join(result.text[start:end] for start, end in result.own).split() == (
        f'{INTRO} The rule says " " and nothing else. What do you think?'.split()
    )


@pytest.mark.parametrize("source", ["", " -- Ben Ohm, July 1997"])
def test_a_paragraph_that_is_a_quotation_is_cut_whole(source: str) -> None:
    body = f'{INTRO}\n\nThe mayor put it like this:\n\n"{RULE}"{source}\n\nWhat do you think?'
    assert explained(body).own_words == f"{INTRO}\n\nThe mayor put it like this:\n\nWhat do you think?"


def test_a_line_of_the_authors_below_the_closing_mark_stays() -> None:
    body = f'{INTRO}\n\nIt reads:\n\n"{RULE}"\nThis seems right.'
    assert explained(body).own_words == f'{INTRO}\n\nIt reads:\n\n"…"\nThis seems right.'


def test_a_quotation_over_paragraphs_ends_with_its_last_mark() -> None:
    body = f'{INTRO}\n\nHe writes:\n\n"{RULE}\n\n"{RULE}"\n\nWhat do you think?'
    assert explained(body).own_words == f"{INTRO}\n\nHe writes:\n\nWhat do you think?"
    unmarked = f'{INTRO}\n\nHe writes:\n\n"{RULE}\n\n{RULE}"\n\nWhat do you think?'
    assert explained(unmarked).own_words == f"{INTRO}\n\nHe writes:\n\nWhat do you think?"


def test_the_answer_below_a_quotation_over_paragraphs_stays() -> None:
    body = f'"{LONG}\n\n{LONG}." I told him that this is no "failure".'
    assert (
        explained(f"{INTRO}\n\n{body}").own_words == f'{INTRO}\n\n"…" I told him that this is no "failure".'
    )


def test_what_the_author_says_to_a_quotation_is_no_source() -> None:
    assert explained(f'{INTRO}\n\n"{LONG}" Can you believe that?').own_words.endswith("Can you believe that?")


def test_a_scanner_reads_the_closing_mark_as_letters() -> None:
    assert explained(f'{INTRO} Please tell Ben "{LONG} II').own_words == f'{INTRO} Please tell Ben "…'


@pytest.mark.parametrize(
    "text",
    [
        f'{INTRO} I call it "the old man of the quay", as you know.',
        f'"{INTRO} I have not seen the crane since. Anna',
        f'{INTRO} The board is 5\'6" wide and 12" deep, the other 7" by 9" and we need both of them today.',
        f"{INTRO} It's Ben's crane, isn't it? The men's boats' oil won't last, I'd say, but don't ask me.",
    ],
)
def test_short_ones_and_stray_marks_stay(text: str) -> None:
    assert (explained(text).own_words, explained(text).cut) == (text, ())
