"""Whose words are these: hand-made mails in every quoting style, with the author's own words."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from training.mail.clean import CleanedText, clean_mail
from training.schemas import DropReason, Mail

QUOTE_CASES = Path(__file__).resolve().parents[3] / "shared" / "data" / "quote_cases.json"

GMAIL = "On Tue, 3 Mar 2026 at 10:12, Bob Lee <bob@x.example> wrote:"
LOTUS_FORWARD = (
    "---------------------- Forwarded by Ann Example/HOU/ECT on 03/03/2026 \n"
    "10:12 AM ---------------------------"
)


def clean(body: str, *, subject: str = "", **fields: object) -> CleanedText:
    return clean_mail(Mail(id="m", thread_id="t", position=0, subject=subject, body_text=body, **fields))  # type: ignore[arg-type]


# name → (body, own words)
OWN_WORDS: dict[str, tuple[str, str]] = {
    "nothing to cut": ("Hello Bob,\n\nsee you there.\n\nAnna", "Hello Bob,\n\nsee you there.\n\nAnna"),
    "gmail": (f"Fine with me.\n\n{GMAIL}\n\n> lunch?\n", "Fine with me."),
    "gmail without a blank line": (f"Fine with me.\n{GMAIL}\n> lunch?\n>\n> Bob\n", "Fine with me."),
    "gmail wrapped over three lines": (
        "Yes.\n\nOn Tue, 3 Mar 2026 at 10:12,\n"
        "Robert van der Longname via Project <project@lists.x.example>\n"
        "wrote:\n> ok?\n",
        "Yes.",
    ),
    "unmarked quote below an attribution": (f"Will do.\n\n{GMAIL}\n\nPlease do it.\n\nBob", "Will do."),
    "attribution with an address only": ("Done.\n\nbob@x.example wrote:\n> do it", "Done."),
    "attribution with a name only": ("Done.\n\nBob Lee wrote:\n> do it", "Done."),
    "yahoo dashes": ("Done.\n\n--- Bob Lee <bob@x.example> wrote:\n> do it", "Done."),
    "apple, quoted attribution": (
        "Great!\n\n> On 3 Mar 2026, at 10:12, Bob <bob@x.example> wrote:\n>\n> ok?",
        "Great!",
    ),
    "nested quotes": (f"Agreed.\n\n{GMAIL}\n> Fine.\n>> No.\n>>> Yes.\n> > mixed\n", "Agreed."),
    "bottom posted": (
        f"{GMAIL}\n> Can we meet on Monday?\n> Bob\n\nMonday is fine.\n\nAnna",
        "Monday is fine.\n\nAnna",
    ),
    "inline without blank lines": (
        f"{GMAIL}\n> Shall we meet?\nYes, gladly.\n> Where?\nAt the office.\n",
        "Yes, gladly.\n\nAt the office.",
    ),
    "inline, three answers": (
        f"Hi Bob\n\n{GMAIL}\n> a?\n\nfirst\n\n> b?\n\nsecond\n\n> c?\n\nthird\n\nAnna",
        "Hi Bob\n\nfirst\n\nsecond\n\nthird\n\nAnna",
    ),
    "indented quote": (
        f"{GMAIL}\n\n    Can we meet on Monday?\n    Bob\n\nMonday is fine with me.",
        "Monday is fine with me.",
    ),
    "orphan of a wrapped quoted line": (
        f"Yes.\n\n{GMAIL}\n> this quoted line was long enough for some client to wrap it once more, so its\n"
        "last words\n> stand alone here\n",
        "Yes.",
    ),
    "outlook original message": (
        "Will do.\n\n-----Original Message-----\nFrom: Bob\nSent: Monday\nTo: Anna\nSubject: x\n\nplease do",
        "Will do.",
    ),
    "outlook with a rule": (
        "Approved.\n\n________________________________\nFrom: Bob Lee <bob@x.example>\nSent: Tuesday\n"
        "To: Anna\n"
        "Subject: Budget\n\nPlease approve.",
        "Approved.",
    ),
    "outlook in bold": (
        "Approved.\n\n*From:* Bob Lee\n*Sent:* Tuesday\n*To:* Anna\n*Subject:* Budget\n\nPlease approve.",
        "Approved.",
    ),
    "outlook german": (
        "Passt.\n\nVon: Bob Lee <bob@x.example>\nGesendet: Dienstag, 3. März 2026 10:12\nAn: Anna\n"
        "Betreff: Treffen\n\nGeht das?",
        "Passt.",
    ),
    "outlook german separator": (
        "Passt.\n\n-----Ursprüngliche Nachricht-----\nVon: Bob\nGesendet: Montag\nAn: Anna\nBetreff: x\n\n"
        "Geht das?",
        "Passt.",
    ),
    "outlook french": (
        "Parfait.\n\nDe : Bob Lee\nEnvoyé : mardi 3 mars 2026 10:12\nÀ : Anna\nObjet : Réunion\n\nÇa va ?",
        "Parfait.",
    ),
    "outlook spanish": (
        "Perfecto.\n\nDe: Bob\nEnviado el: martes, 3 de marzo de 2026\nPara: Anna\nAsunto: Cita\n\n¿Vale?",
        "Perfecto.",
    ),
    "outlook italian": (
        "Va bene.\n\nDa: Bob\nInviato: martedì 3 marzo 2026\nA: Anna\nOggetto: Riunione\n\nPuoi?",
        "Va bene.",
    ),
    "outlook dutch": (
        "Prima.\n\nVan: Bob\nVerzonden: dinsdag 3 maart 2026\nAan: Anna\nOnderwerp: Afspraak\n\nKan dat?",
        "Prima.",
    ),
    "outlook portuguese": (
        "Certo.\n\nDe: Bob\nEnviada em: terça-feira, 3 de março de 2026\nPara: Anna\nAssunto: Reunião\n\n"
        "Pode?",
        "Certo.",
    ),
    "outlook swedish": (
        "Bra.\n\nFrån: Bob\nSkickat: den 3 mars 2026\nTill: Anna\nÄmne: Möte\n\nFunkar det?",
        "Bra.",
    ),
    "attribution german": ("Ja.\n\nAm 03.03.2026 um 10:12 schrieb Bob Lee:\n> Treffen?", "Ja."),
    "attribution italian": (
        "Sì.\n\nIl giorno mar 3 mar 2026 alle ore 10:12 Bob <bob@x.example> ha scritto:\n\n> Ciao?",
        "Sì.",
    ),
    "attribution dutch": (
        "Ja.\n\nOp di 3 mrt 2026 om 10:12 schreef Bob <bob@x.example>:\n\n> Kan dat?",
        "Ja.",
    ),
    "attribution portuguese": (
        "Sim.\n\nEm ter., 3 de mar. de 2026 às 10:12, Bob <bob@x.example> escreveu:\n\n> Pode?",
        "Sim.",
    ),
    "attribution swedish": ("Ja.\n\nDen tis 3 mars 2026 kl 10:12 skrev Bob <bob@x.example>:\n\n> Ok?", "Ja."),
    "attribution without a verb": (
        "はい。\n\n2026年3月3日(火) 10:12 Bob Lee <bob@x.example>:\n\n> ok?",
        "はい。",
    ),
    "lotus forward": (
        f"Please print this for me.\n{LOTUS_FORWARD}\n\n\nBob Lee\n03/03/2026 09:55 AM\n"
        f"To: Ann Example/HOU/ECT@ECT\n"
        "cc:  \n\nSubject: Report\n\nHere it is.",
        "Please print this for me.",
    ),
    "lotus reply, name and date": (
        "I'll call him.  AE\n\n\n\n\nBob Lee\n03/03/2026 09:55 AM\nTo: Ann Example/HOU/ECT@ECT\ncc:  \n\n"
        "Subject: Call\n\nCan you call him?",
        "I'll call him.  AE",
    ),
    "lotus reply, From and date on one line": (
        "OK.\n\n   \n\t\n\tThe Example Corp.\n\t\n"
        "\tFrom:  Bob Lee                           03/03/2026 09:55 AM\n\t\n\n"
        "To: Ann Example/HOU/ECT@ECT\ncc:  \n\nSubject: Call\n\nFine?",
        "OK.",
    ),
    "lotus reply, name last": (
        "OK.\n\n03/03/2026 09:55 AM\nBob Lee\nBob Lee\n03/03/2026 09:55 AM\nTo: Ann Example/HOU/ECT@ECT\n"
        "cc:\nSubject: x\n\nY",
        "OK.",
    ),
    "lotus internet sender": (
        'Thanks Jan.\n\nAnn\n\n\n"Jan Sender" <jan@x.example> on 03/03/2026 04:52:19 AM\nPlease respond to '
        '"Jan Sender" <jan@x.example>\nTo: "Ann" <ann@y.example>\ncc:  \nSubject: trip\n\nDates?',
        "Thanks Jan.\n\nAnn",
    ),
    "lotus indented block": (
        "Will do.\n\nAnn\n\n\n\tBob Lee@X\n\t03/03/2026 05:39 PM\n\t\t \n\t\t To: Ann\n\t\t cc: \n"
        "\t\t Subject: Call\n\nHi",
        "Will do.\n\nAnn",
    ),
    "lotus block on one line": (
        "Sure.\n\nAnn\n\n\tBob Lee <bob@x.example> 03/03/2026 05:39 PM \t   To: ann@y.example  cc:   "
        "Subject: Call\t\n\nHi",
        "Sure.\n\nAnn",
    ),
    "lotus with sixty recipients": (
        "Done.\n\nFrom: Bob Lee on 03/03/2026 09:55 AM\nTo: "
        + "".join(f"Person{n}/HOU/ECT@ECT, Person{n + 1}/HOU/ECT@ECT, \n" for n in range(60))
        + "cc:  \n\nSubject: All\n\nPlease confirm.",
        "Done.",
    ),
    "arms record with ocr damage": (
        "Sounds right.\n\n\n\nBob Q. Lee\nOS/28/97 11:37:35 AM\nRecord Type:    Record\n\n"
        "To:      Ann Example/OPD/EOP\n"
        "ce:\nSubject:         draft\n\ncomments?",
        "Sounds right.",
    ),
    "arms forward": (
        "FYI -- see the second page.\n\n---------------------- Forwarded by Ann Example/OPD/EOP on 09/16/97\n"
        "07:00 PM ------------'---------------\n\nBob Lee\n09/16/97 06:36:49 PM\nRecord Type:    Record\n\n"
        "To: Ann\ncc:\n"
        "Subject: x\n\ntext",
        "FYI -- see the second page.",
    ),
    "gmail forward": (
        "See below.\n\n---------- Forwarded message ---------\nFrom: Bob <bob@x.example>\nDate: 3 Mar 2026\n"
        "Subject: hi\n"
        "To: Anna\n\nbody",
        "See below.",
    ),
    "apple forward": (
        "See below.\n\nBegin forwarded message:\n\nFrom: Bob <bob@x.example>\nSubject: hi\n"
        "Date: 3 March 2026\nTo: Anna\n\nb",
        "See below.",
    ),
    "half a header": (
        "Please read before Friday.\n\nSubject:\tOffice move on Friday\n\nEverybody moves on Friday.",
        "Please read before Friday.",
    ),
}

# Own writing that looks like a quote.
NOT_QUOTES = {
    "a sentence with wrote": "On 3 March 2026 the committee met and I wrote:\n"
    "please hold the launch. They agreed.",
    "an agenda": "Agenda for Monday:\n\nFrom: nine to ten we review.\nThen lunch.",
    "to the point": "To: do this week\n- call Bob\n- pay the rent",
    "a dash rule": "First part.\n\n-----\n\nSecond part.",
    "a greater sign": "We need a budget > 50 and a team < 5, nothing else.",
    "an mbox escape": ">From here on it gets easier.\n\nAnna",
    "a colon at the end": "The three things we said on 3 March 2026 at 10:12 were these:\n\none, two, three",
}


@pytest.mark.parametrize("name", OWN_WORDS)
def test_only_own_words_stay(name: str) -> None:
    body, own_words = OWN_WORDS[name]
    assert (
        clean(body, subject="FW: Office move on Friday" if name == "half a header" else "").own_words
        == own_words
    )


@pytest.mark.parametrize("name", NOT_QUOTES)
def test_own_writing_that_looks_like_a_quote_stays(name: str) -> None:
    cleaned = clean(NOT_QUOTES[name])
    assert (
        cleaned.own_words == NOT_QUOTES[name].removeprefix(">" if "mbox" in name else "")
        or cleaned.own_words == NOT_QUOTES[name]
    )
    assert not cleaned.cuts


@pytest.mark.shared_data
@pytest.mark.skipif(not QUOTE_CASES.exists(), reason=f"{QUOTE_CASES.name} is not beside the repository")
def test_all_cases_of_the_evaluation_folder_come_out_exact() -> None:
    cases = json.loads(QUOTE_CASES.read_text())
    assert len(cases) >= 14
    wrong = [case["name"] for case in cases if clean(case["text"]).own_words != case["own_words"].strip()]
    assert wrong == []


@pytest.mark.parametrize(
    ("body", "answered"),
    [
        (f"Yes.\n\n{GMAIL}\n> Can we meet?\n>\n> Bob\n>> older\n", "Can we meet?\n\nBob"),
        (OWN_WORDS["lotus reply, name and date"][0], "Can you call him?"),
        (OWN_WORDS["outlook german"][0], "Geht das?"),
        (
            "Ok.\n\n-----Original Message-----\nFrom: B\nSent: x\nTo: A\nSubject: s\n\nNewest.\n\n"
            "-----Original Message-----\nFrom: C\nSent: y\nTo: B\nSubject: s\n\nOldest.",
            "Newest.",
        ),
    ],
)
def test_the_answered_message_comes_without_headers_and_older_quotes(body: str, answered: str) -> None:
    long_enough = "These are nine words so that nothing drops it. " + body
    assert clean(long_enough).answered_text == answered


def test_the_stored_received_body_is_preferred_to_the_quote() -> None:
    body = f"That works well for me, see you on Monday then.\n\n{GMAIL}\n> cut\n"
    assert (
        clean(body, answered_text=f"Can we meet on Monday?\n\n{GMAIL}\n> older").answered_text
        == "Can we meet on Monday?"
    )


def test_an_unmarked_quote_with_nothing_above_is_not_guessed() -> None:
    body = (
        f"{GMAIL}\n\nCan we meet on Monday or is that too early?\n\nMonday is fine with me, see you at ten."
    )
    assert clean(body).drop is DropReason.UNCLEAR_QUOTE


def test_answers_below_an_outlook_header_with_nothing_above_are_not_guessed() -> None:
    body = (
        "-----Original Message-----\nFrom: Bob\nSent: Monday\nTo: Anna\nSubject: x\n\n"
        "> Shall we meet on Monday?\n\n"
        "Monday is fine with me, see you at ten in the office."
    )
    assert clean(body).drop is DropReason.UNCLEAR_QUOTE


@pytest.mark.parametrize(
    ("own", "drop"),
    [
        ("Please have a look at the second page before Friday.", None),
        ("FYI", DropReason.FORWARD_ONLY),
        ("", DropReason.FORWARD_ONLY),
    ],
)
def test_a_forward_counts_only_with_enough_own_words(own: str, drop: DropReason | None) -> None:
    cleaned = clean(
        f"{own}\n\n---------- Forwarded message ---------\nFrom: B <b@x.example>\nTo: A\nSubject: s\n\n"
        f"long body"
    )
    assert cleaned.drop is drop
    assert cleaned.is_forward


def test_a_quote_alone_is_no_example() -> None:
    assert clean(f"\n\n{GMAIL}\n> Can we meet?\n").drop is DropReason.QUOTE_ONLY


def test_a_first_quoted_line_that_a_client_wrapped_belongs_to_the_quote() -> None:
    head = "  The New Crane of Wexmouth: A Question for the Board, Not Whether, But How"
    assert clean(f"{head}\n>                   Many?\n>\n> By Mina Varga\n").drop is DropReason.QUOTE_ONLY
    own = "Here is what the board wrote to us about the crane, please read it before Friday."
    assert clean(f"{own}\n> How many cranes?\n> One is enough.\n").own_words == own


def test_every_cut_is_a_span_of_the_decoded_body() -> None:
    cleaned = clean(f"Fine.\r\n\r\n{GMAIL}\r\n> lunch?\r\n\r\nSent from my iPhone\r\n")
    assert [(cut.reason, cleaned.text[cut.start : cut.end].strip()) for cut in cleaned.cuts] == [
        ("attribution", GMAIL),
        ("quote", "> lunch?"),
        ("footer", "Sent from my iPhone"),
    ]


BAIT = {
    "quote marks": "> ",
    "quoted lines": "> a\n",
    "lead words": "On ",
    "attributions": "On 3 Mar 2026 at 10:12 a@b.example\n",
    "verbs": " wrote:\n",
    "labels": "From: x\n",
    "recipients": "To: a@b.example,\n" + "c@d.example,\n" * 140,
    "other labels": "Importance: h\nSent by: x\n",
    "dates": "01/01/2000 10:10 AM\nTo: x\n",
    "dashes": "-",
    "new lines": "\n",
    "blanks": " ",
    "digits": "4111 ",
    "capitals": "AA11",
    "soft breaks": "=\n",
    "tags": "<div>",
    "one word": "a",
    "bylines": "\nBy Aa Bb Cc",
    "datelines": "\nAAAA, Bbbb ",
    "speakers": "\nMR. A",
    "speech marks": 'said "',
    "nearly markers": "-- origina message",
    "encoded bytes": "a=E9",
    "attachment rules": "x======\n \n",
    "rule and blanks": "x======" + " " * 4_000,
    "announcements": "here is the text of a ",
    "rules under closings": "Best,\nAnna\n" + "-" * 24 + "\n",
    "deep lines": "\n" + "\t" * 9 + "and",
    "open quotation marks": "“",
    "meeting labels": "When: a\n\n",
    "press names": "times ",
}


@pytest.mark.parametrize("name", BAIT)
def test_a_million_characters_take_less_than_a_second(name: str) -> None:
    body = BAIT[name] * (1_000_000 // len(BAIT[name]))
    # Processor time: the machine that runs the tests has other work too.
    start = time.process_time()
    clean(body)
    clean_mail(Mail(id="m", thread_id="t", position=0, body_html=f"<html>{body}"))
    assert time.process_time() - start < 2  # two mails
