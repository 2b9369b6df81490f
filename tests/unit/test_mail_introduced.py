"""What the author says to be somebody else's is cut; what the author announces as own stays."""

from __future__ import annotations

import pytest

from tests.unit.test_mail_pasted import INTRO, LETTER, RULE, explained
from training.schemas import DropReason


@pytest.mark.parametrize(
    "above",
    [
        "I asked Mina to look into it. Here's what she found:",
        "My intern wrote up this summary of what she read:",
        "Ben was at the meeting. He reported:",
        "The harbour office sent us this summary:",
        "They've proposed to add the following to the letter:",
        "Jo read it and would edit as follows ....",
        "Here's the description you all received on Friday --",
        "Ben schrieb mir gestern:",
    ],
)
def test_what_somebody_wrote_is_cut_to_the_end(above: str) -> None:
    result = explained(f"{INTRO}\n\n{above}\n\n{RULE}\n\n{LETTER}")
    assert result.own_words == f"{INTRO}\n\n{above}"
    assert {cut.reason for cut in result.cut} == {"introduced"}


@pytest.mark.parametrize(
    "above",
    [
        "The contract has a paragraph which reads:",
        "The harbour act says:",
        "According to their press release, the fee changes:",
        "Here is how the whole paragraph would read.",
        "We might use this language, which was in the letter to the board.",
    ],
)
def test_a_text_that_is_quoted_ends_where_the_author_speaks_again(above: str) -> None:
    text = f"{INTRO}\n\n{above}\n\n{RULE}\n\nI would rather say nothing. What do you think?"
    assert explained(text).own_words == (
        f"{INTRO}\n\n{above}\n\nI would rather say nothing. What do you think?"
    )


def test_the_closing_and_the_name_below_it_stay() -> None:
    result = explained(f"{INTRO}\n\nHe reported:\n\n{RULE}\n\nStay tuned. Anna", sender="Anna Berg")
    assert result.own_words == f"{INTRO}\n\nHe reported:\n\nStay tuned. Anna"


def test_a_label_with_a_name_goes_with_what_it_labels() -> None:
    above = f"{INTRO} It is what Ben Ohm thinks (see below)."
    assert explained(f"{above}\n\nFrom Ohm:\n{LETTER}").own_words == above
    directions = f"{INTRO}\n\nFrom Munich:\nTake the road to the north and turn left at the old mill, {RULE}"
    assert explained(directions).cut == ()


def test_a_clause_with_its_own_number_is_a_definition() -> None:
    clause = f'(1)   "Mooring" means any place at the quay. {RULE}'
    text = f"{INTRO}\n\nMoorings are defined as:\n\n{clause}\n\nI would rather say nothing."
    assert clause not in explained(text).own_words
    assert not explained(f"{INTRO}\n\nThe residual is defined as:\n\nthe mean of {RULE}").cut


def test_remarks_in_brackets_between_the_mails_of_another_stay() -> None:
    body = f"{INTRO}\n\n[Yesterday he wrote:]\n\n{LETTER}\n\n[I asked again. He replied:]\n\n{LETTER}"
    assert explained(body).own_words == (f"{INTRO}\n\n[Yesterday he wrote:]\n\n[I asked again. He replied:]")


@pytest.mark.parametrize(
    "above",
    [
        "Here's what I found:",
        "We propose to add the following to the letter:",
        "Here is what we might want to say in the speech:",
        "Ben wrote to the board saying:",
        "Three things to do this week:",
        "Here's my draft:",
        "In brief:",
        "Status report:",
        "Problems found:",
        "Our new policy on lost keys says:",
        "Compared with Monday's version:",
        "Wie ich dir gestern schon schrieb:",
        "You won't believe what Peter found...",
    ],
)
def test_what_the_author_announces_as_own_stays(above: str) -> None:
    text = f"{INTRO}\n\n{above}\n\n{RULE}"
    assert explained(text).own_words.split() == text.split()


QUESTIONS = (
    "1. How many boats are in the harbour?\n   Just under forty.\n\n"
    "2. Who owns the crane? And since\nwhen?\n   The town, as far as I know.\n\n"
    "3. What is the fee? Ten crowns a week for most."
)


def test_the_questions_that_the_author_answers_are_cut_and_the_answers_stay() -> None:
    result = explained(f"{INTRO}\n\n{QUESTIONS}", subject="Answers to your questions")
    for question in ("How many", "Who owns", "when?", "What is the fee?"):
        assert question not in result.own_words
    for answer in ("Just under forty.", "The town, as far as I know.", "Ten crowns a week for most."):
        assert answer in result.own_words


@pytest.mark.parametrize(
    "subject",
    ["The harbour", "Please answer the following questions", "Before I give you answers, my questions"],
)
def test_the_authors_own_questions_stay(subject: str) -> None:
    assert not explained(f"{INTRO}\n\n{QUESTIONS}", subject=subject).cut


@pytest.mark.parametrize("heading", ["Section 12.4 Moorings of the town", "XIII.      EXEMPTION OF FERRIES"])
def test_a_passage_of_a_document_is_cut_from_its_heading(heading: str) -> None:
    above = f"{INTRO}\n\nOur answer is the same as it was."
    assert explained(f"{above}\n\n{heading}\n\n(a) {RULE}").own_words == above


@pytest.mark.parametrize(
    "text",
    [
        "Section 3.2: The proof is too short for me.",
        "Pages 10-12\nI would shorten these.",
        "I.   WHAT WE HAVE DONE SO FAR\nThe crane.\n\nII.   WHAT IS STILL TO BE DONE\nThe lamps.",
        "Thank you, I'm so glad you enjoyed the day.",
    ],
)
def test_headings_and_thanks_of_the_authors_own_stay(text: str) -> None:
    body = f"{INTRO}\n\nThe invoice for the lamps is attached.\n\n{text}"
    assert explained(body).cut == ()


def test_nobody_thanks_for_their_own_praise() -> None:
    praise = "By the way, I read your letter and it is very well put."
    body = f"{INTRO}\n\n{praise}\n\nThanks, I'm glad you liked it!"
    assert explained(body).own_words == f"{INTRO}\n\nThanks, I'm glad you liked it!"


def test_a_page_with_its_title_in_the_middle_is_no_own_mail() -> None:
    page = f"4/20/98\n{' ' * 12}QUESTIONS ABOUT\n{' ' * 16}THE CRANE\n\n{RULE}"
    assert explained(page).drop_reason is DropReason.FORWARD_ONLY
