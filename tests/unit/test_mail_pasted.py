"""Text of others that no client marked is cut where it begins; own writing of the same shape stays."""

from __future__ import annotations

import pytest

from training.mail.clean import clean_mailbox
from training.mail.explain import Explanation, explain
from training.schemas import DropReason, Mail

INTRO = "Please read this before we meet on Friday, I think it helps our case."
STORY = (
    'The harbour board said the "old crane" would stay. "Nobody asked for a new one," said Ben Ohm, who '
    "runs the ferry. The town had told the board in March that the crane was unsafe. Engineers said it could "
    "be mended for less than a tenth of the price, according to a report. Two members of the board left the "
    "room during the vote, and a third said nothing. The mayor told reporters that the matter was closed. "
)
PASTED = {
    "byline and dateline": f"Old Crane Stays\nBy Mina Varga\n\nWEXMOUTH -- {STORY}",
    "paper and date": f"WEXMOUTH HERALD, July 6, 1997\nOld Crane Stays\n\n{STORY}",
    "copyright": f"Old Crane Stays\n\n{STORY}\n\nCopyright 1997 Wexmouth Herald",
    "database labels": f"HEADLINE: Old Crane Stays\nLENGTH: 90 words\n\n{STORY}",
    "paper above date": f"The Wexmouth Spectator\nJuly, 1997\n\nOld Crane Stays\n\n{STORY}",
    "embargo": f"Harbour Office\n\nEmbargoed until 4 pm Thursday\n\nOld Crane Stays\n\n{STORY}",
    "press release": f"FOR IMMEDIATE RELEASE\n\nOld Crane Stays\n\n{STORY}",
    "reported speech alone": f"Old Crane Stays\n\n{STORY}",
    "transcript": f"Q    Will the crane stay?\n\nMR. OHM:  Yes, it will.\n\nQ    Why?\n\nMR. OHM:  {STORY}",
}


RULE = (
    "MOORING FEES. The fee for a mooring is set by the board once a year and covers the upkeep of the quay, "
    "the lamps and the crane. Whoever leaves a boat for longer than a week without paying it is told so in "
    "writing, and the harbour master may move the boat at the cost of its owner."
)
LETTER = (
    "I am not sure that we need a second crane. My men say that the old one does its work, and your own "
    "report says so too. Let me know which of the two you would rather pay for, and we will see to the rest "
    "of it before the boats come back in May, as we did last year."
)


def explained(body: str, **fields: object) -> Explanation:
    return explain(Mail(id="m", thread_id="t", position=0, body_text=body, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PASTED)
def test_an_article_below_own_words_is_cut_where_it_begins(name: str) -> None:
    result = explained(f"{INTRO}\n\n{PASTED[name]}\n")
    assert (result.own_words, result.kept) == (INTRO, True)
    assert [(cut.reason, result.text[cut.text_start : cut.text_end]) for cut in result.cut] == [
        ("pasted", PASTED[name].strip())
    ]


@pytest.mark.parametrize("name", PASTED)
def test_an_article_alone_is_a_forward_without_own_words(name: str) -> None:
    assert explained(f"FYI.\n\n{PASTED[name]}").drop_reason is DropReason.FORWARD_ONLY


def test_a_short_transcript_alone_is_no_own_mail() -> None:
    body = "Q    Will the crane stay there?\n\n   MR. OHM:  Yes, as I understand it.\n\nBrilliant!"
    assert explained(body).drop_reason is DropReason.FORWARD_ONLY


@pytest.mark.parametrize(
    "remark", ["Note however, that the board still objects.", "Also, here's the release."]
)
def test_a_remark_above_an_article_is_the_authors(remark: str) -> None:
    assert explained(f"{INTRO}\n\n{remark}\n\n{PASTED['copyright']}").own_words == f"{INTRO}\n\n{remark}"


def test_a_headline_directly_under_the_sign_off_goes_with_its_article() -> None:
    headline = "Old crane stays in Wexmouth\nBy Mina Varga and Jo Lund\nStaff Writers"
    body = f"{INTRO}\nBest,\nAnna\n{headline}\n\n{STORY}"
    assert explained(body).own_words == f"{INTRO}\nBest,\nAnna"


def test_a_passage_of_a_document_that_the_subject_announces_is_cut() -> None:
    passage = "Mooring Fees\n" + "The fee for a mooring is set by the board and covers its upkeep.\n" * 12
    result = explained(f"{INTRO}\n\n\n\n{passage}", subject="Here's the language of the new rule")
    assert result.own_words == INTRO
    assert explained(f"{INTRO}\n\n\n\n{passage}", subject="Moorings").own_words != INTRO


@pytest.mark.parametrize(
    ("above", "passage"),
    [
        ("Anna, here is the text of the harbour rule.", RULE),
        ("The entire text of the rule is as below:", RULE),
        ("You should know that Ben wrote to all of us (see excerpt below).", RULE),
        ("Following is a memo from the harbour office. I think you will like it.", f"\n{LETTER}"),
        ("Here's the text of the last mail Ben sent you. What do you think?", f"\n{LETTER}"),
        ("Lieber Jo, hier ist der Wortlaut der Satzung.", RULE),
    ],
)
def test_what_the_author_says_to_be_the_text_of_another_is_cut(above: str, passage: str) -> None:
    assert explained(f"{INTRO}\n\n{above}\n\n{passage}\n").own_words == f"{INTRO}\n\n{above}"


@pytest.mark.parametrize(
    "above",
    [
        "Here is the text of my letter to the board.",
        "Here is the text of the mail that I wrote to Ben.",
        "Below is a note from me to the board.",
        "Attached is the text of the rule.",
        "Thanks for your message. You asked for the prices; here they are:",
    ],
)
def test_what_the_author_wrote_and_announces_stays(above: str) -> None:
    text = f"{INTRO}\n\n{above}\n\n\n{LETTER}"
    assert explained(text).own_words.split() == text.split()


def test_an_excerpt_under_its_own_heading_is_no_own_mail() -> None:
    heading = "Excerpt from remarks of the mayor at the opening of the quay, 4 April 1997:"
    assert explained(f"{heading}\n\n{LETTER}\n(Applause.)").drop_reason is DropReason.FORWARD_ONLY


def test_what_stands_below_a_long_rule_under_the_signature_is_cut() -> None:
    own, rule = f"{INTRO}\n\nBest,\nAnna", "+" * 60
    assert explained(f"{own}\n\n{rule}\n\n{LETTER}").own_words == own
    for text in (f"{own}\n\n{rule}\n\nP.S. {LETTER}", f"{INTRO}\n\n{rule}\n\n{LETTER}\n\nAnna"):
        assert explained(text).own_words.split() == text.split()


def test_prose_that_is_set_in_like_a_web_page_is_cut_and_a_list_stays() -> None:
    page = "\n".join(
        f"{' ' * 24}{line}"
        for line in (
            "Wexmouth is one of the oldest harbours of the",
            "coast, and the crane on its quay has been in use",
            "since the days of sail. The town, which owns the",
            "quay, has set aside the money for a new one, and",
            "the board will choose between two makers in the",
            "spring. Boats of more than ten metres have to be",
            "moored at the outer quay until the work is done,",
            "which is to be before the first of May. The lamps",
            "will be lit from dusk to dawn.",
        )
    )
    assert explained(f"{INTRO}\n\n{page}\n").own_words == INTRO
    todo = "\n".join(f"{' ' * 24}Boat {n}: paint, rope, lamp, oars, sail and the keys." for n in range(9))
    assert explained(f"{INTRO}\n\n{todo}\n").cut == ()


def test_a_press_release_that_only_the_subject_names_is_cut() -> None:
    release = (
        "Board and Town Settle over the Crane\nThe board and the town today reached an agreement on the "
        'crane of the harbour. "This is a fair way to keep the quay open," said Ben Ohm, president of the '
        "board. The town will bear two thirds of the cost. The agreement is to be read in the spring and "
        "takes effect on the first of May, after the boats have come back from their winter berths."
    )
    dropped = explained(release, subject="Harbour board press release on the crane").drop_reason
    assert dropped is DropReason.FORWARD_ONLY
    assert explained(release, subject="The crane").kept


def test_a_mail_that_is_quotation_but_for_a_few_words_has_no_own_words() -> None:
    assert explained(f'The rule says: "{RULE}" -Anna').drop_reason is DropReason.QUOTE_ONLY
    assert explained(f'{INTRO} The rule says: "{RULE}" What now?').kept
    assert explained(f'"Yes" is what I would say. {INTRO} {INTRO} And not "no".').kept


def test_a_mail_to_the_author_below_own_words_is_cut_at_its_salutation() -> None:
    body = (
        f"{INTRO}  AE\n\nAnna,\n\nattached is the list of prices for the ropes that were asked for.\n\nBob\n"
    )
    assert explained(body, sender="anna.example@x.example").own_words == f"{INTRO}  AE"
    assert "attached" in explained(body, sender="carl@x.example").own_words


@pytest.mark.parametrize(
    "text",
    [
        f"{INTRO} " * 6,
        "I met Ben Ohm. He said the crane stays; the board said so too. You were right, I told him. He said "
        "that the mayor said no, and Jo said yes. My guess is that they said it to please us. What do you "
        "think? I said we would answer on Friday, and you should say what you want before I call him again.",
        "To do by Friday -- all of you please:\n\n"
        + "\n".join(f"- paint boat {n} and call me" for n in range(20)),
        "WEXMOUTH - I will be there from Monday.\nHARBOUR - you have the keys.\n\n" + f"{INTRO} " * 6,
        "Dear Anna,\n\n" + f"{INTRO} " * 5 + "\n\nAnna",
    ],
)
def test_own_writing_that_reports_lists_or_shouts_stays(text: str) -> None:
    result = explained(text, sender="anna@x.example")
    assert result.cut == ()
    assert result.own_words.split() == text.split()


def test_a_mail_that_another_name_signs_is_dropped_and_counted() -> None:
    topics = ("rope", "paint", "sail", "oar", "anchor", "lamp", "chart", "flag")
    bodies = [
        f"Could you bring the {topic} to berth {number} by {topics[number - 1]} day?\n\nThanks,\nAnna"
        for number, topic in enumerate(topics)
    ]
    bodies.append("Here is the number of the new harbour office for your calls.\n\nThank you,\n\nTammie")
    mails = [
        Mail(id=f"m{n}", thread_id=f"t{n}", position=n, body_text=body, sender="ae@x.example")
        for n, body in enumerate(bodies)
    ]
    assert clean_mailbox(mails).drop_of == {"m8": DropReason.UNCLEAR_QUOTE}


@pytest.mark.parametrize(
    ("body", "drop"),
    [
        ("FYI\n\nThe slip is closed on Saturday for repairs, use the other one.\n\nBen Ohm\nX5356", True),
        ("The slip is closed on Saturday for repairs, use the other one.", True),
        ("The slip is closed on Saturday for repairs, use the other one.\n\nAnna", False),
        ("The slip is closed on Saturday for repairs, use the other one.  AE", False),
    ],
)
def test_a_forward_without_its_header_counts_only_when_the_author_signed_it(body: str, drop: bool) -> None:
    mail = Mail(
        id="m", thread_id="t", position=0, subject="FW: slip", body_text=body, sender="anna.ember@x.example"
    )
    assert clean_mailbox([mail]).drop_of == ({"m": DropReason.UNCLEAR_QUOTE} if drop else {})
