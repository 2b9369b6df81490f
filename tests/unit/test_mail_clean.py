"""From a sent mailbox to usable mails: what stays, what is dropped, and that each drop has its reason."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from training.mail.clean import CleanedMailbox, CleanedText, clean_mail, clean_mailbox
from training.mail.decode import normalise_text
from training.mail.duplicates import find_near_duplicates
from training.mail.filters import drop_by_headers
from training.mail.html import render_html
from training.mail.languages import UNDETERMINED, detect_language
from training.mail.paragraphs import unwrap
from training.mail.secrets import redact
from training.mail.subjects import clean_subject
from training.schemas import DropReason, Mail

GMAIL = "On Tue, 3 Mar 2026 at 10:12, Bob Lee <bob@x.example> wrote:"
TOPICS = (
    "budget", "garden", "server", "invoice", "holiday", "contract", "kitchen", "printer",
    "seminar", "bicycle", "museum", "boiler", "passport", "choir", "harbour", "lecture",
    "orchard", "tender", "viaduct", "warehouse",
)  # fmt: skip


def mail(body: str = "", number: int = 0, **fields: object) -> Mail:
    return Mail(id=f"m{number}", thread_id=f"t{number}", position=number, body_text=body, **fields)  # type: ignore[arg-type]


def clean(body: str, **fields: object) -> CleanedText:
    return clean_mail(mail(body, **fields))


def own_mail(number: int) -> str:
    """A mail of a person: no two share five words in a row that matter."""
    topic, other = TOPICS[number % 20], TOPICS[(number * 7 + number // 20 + 3) % 20]
    return (
        f"Could you {('check', 'send', 'review', 'sign')[number % 4]} the {topic} papers {number} before "
        f"the {other} "
        f"people call? I will ask {other} again on day {number}."
    )


def mailbox(bodies: list[str], **options: object) -> CleanedMailbox:
    return clean_mailbox([mail(body, number) for number, body in enumerate(bodies)], **options)  # type: ignore[arg-type]


# ---- footers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "footer",
    [
        "-- \nAnna Smith\nCTO\n+43 660 1234567",
        "--\nAnna",
        "Sent from my iPhone",
        "Von meinem iPhone gesendet",
        "Envoyé de mon iPhone",
        "Enviado desde mi iPhone",
        "Inviato da iPhone",
        "Verstuurd vanaf mijn iPhone",
        "Enviado do meu iPhone",
        "Skickat från min iPhone",
        "Get Outlook for iOS<https://aka.example/o0ukef>",
        "CONFIDENTIALITY NOTICE: this e-mail is intended only for the addressee.",
        "Diese E-Mail enthält vertrauliche Informationen.\n"
        "Wenn Sie nicht der richtige Empfänger sind, löschen Sie sie.",
        "Ce message et ses pièces jointes sont confidentiels.",
        "_______________________________________________\nDev mailing list\nDev@lists.x.example",
        "You received this message because you are subscribed to the group.",
        "==================== ATTACHMENT   1 ====================\nATT CREATION TIME/DATE: 0",
        " - REPORT.XLS",
        " - crane.mpg",
        " <<Prices of ropes.doc>>",
        "(See attached file: report.doc)",
        "-'",
    ],
)
def test_footers_are_cut_and_the_sign_off_stays(footer: str) -> None:
    assert clean(f"See the second page.\n\nBest regards,\nAnna\n\n{footer}\n").own_words == (
        "See the second page.\n\nBest regards,\nAnna"
    )


@pytest.mark.parametrize(
    "text",
    [
        "This message is for Bob: bring the confidential folder on Monday.",
        "I sent it from my iPhone yesterday, did it arrive?",
        "First part.\n\n--\n\n" + "\n".join(f"A long second part, line {n}." for n in range(30)),
        "See you :-)",
        "Thanks!\n\nA",
    ],
)
def test_own_words_that_look_like_a_footer_stay(text: str) -> None:
    assert clean(text).own_words == text


@pytest.mark.parametrize(
    "rule",
    [
        "==================== ATTACHMENT     1 ---",
        "==================== ATTAC\n",
        "    ==================== A\n",
        "=========\n",
    ],
)
def test_an_attachment_rule_on_the_last_line_is_cut(rule: str) -> None:
    assert clean(f"Here is the summary.{rule}").own_words == "Here is the summary."


def test_a_signature_that_a_third_of_the_mails_share_is_learnt_and_cut() -> None:
    signature = "\n\nA. Example\nEast Trading\nAssistant to B. Example\noff. 555-853-5800"
    bodies = [own_mail(n) + (signature if n % 2 else "") for n in range(20)]
    cleaned = mailbox(bodies)
    assert all("Trading" not in each.own_words for each in cleaned.mails)
    assert clean_mail(mail(bodies[1]), cleaned.learnt).own_words == own_mail(1)


def test_a_sign_off_that_every_mail_shares_is_voice_and_stays() -> None:
    cleaned = mailbox([f"{own_mail(n)}\n\nBest regards,\nAnna" for n in range(20)])
    assert all(each.own_words.endswith("Best regards,\nAnna") for each in cleaned.mails)
    assert len(cleaned.mails) == 20


@pytest.mark.parametrize(
    "closing",
    [
        "Mit freundlichen Grüßen",
        "Schöne Grüße",
        "Bis bald",
        "LG Anna",
        "Best, Anna",
        "Bien à toi,",
        "Bonne journée,",
        "Merci d'avance,",
        "Saludos cordiales",
        "Un abrazo,",
        "Un caro saluto",
        "Buona giornata,",
        "Alvast bedankt,",
        "Liefs,",
        "Com os melhores cumprimentos",
        "Beijinhos",
    ],
)
def test_a_closing_of_any_language_is_no_part_of_the_signature_below_it(closing: str) -> None:
    signature = "Anna Example\nLeitung Gestaltung\nBeispiel GmbH\nTel.: +49 30 1234567"
    cleaned = mailbox([f"{own_mail(n)}\n\n{closing}\n\n{signature}" for n in range(20)])
    assert len(cleaned.mails) == 20
    for number, each in enumerate(cleaned.mails):
        assert each.own_words.startswith(f"{own_mail(number)}\n\n{closing}")
        assert "Gestaltung" not in each.own_words


def test_a_sentence_that_every_mail_ends_with_is_said_and_stays() -> None:
    end = "Please let me know if you have any questions.\n\nAnna"
    cleaned = mailbox([f"{own_mail(n)}\n\n{end}" for n in range(20)])
    assert all(each.own_words.endswith(end) for each in cleaned.mails)


@pytest.mark.parametrize(
    "end",
    [
        "Have a lovely weekend, and give our love to the children.",
        "More about that next week.\n\nAnna",
        "Call me if anything is unclear: 01632 960 118.",
    ],
)
def test_an_ordinary_last_sentence_is_no_signature(end: str) -> None:
    cleaned = mailbox([f"{own_mail(n)}\n\n{end}" for n in range(20)])
    assert all(each.own_words.endswith(end) for each in cleaned.mails)


@pytest.mark.parametrize("signed", ["H.B.", "H. B.", "M & H", "x x x", "2-1!"])
def test_initials_kisses_and_scores_are_the_authors(signed: str) -> None:
    assert clean(f"See you on Monday, bring the rope.\n\n{signed}").own_words.endswith(signed)


def test_a_phone_number_under_the_sign_off_goes_and_the_name_stays() -> None:
    cleaned = mailbox([f"{own_mail(n)}\n\nThanks,\n\nAnna Example\n555-349-8836" for n in range(20)])
    assert all(each.own_words.endswith("Thanks,\n\nAnna Example") for each in cleaned.mails)


# ---- drops by header and kind ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"ai_generated": True}, DropReason.AI_GENERATED),
        ({"headers": {"auto-submitted": "auto-replied; owner-email=a@b.example"}}, DropReason.AUTO_REPLY),
        ({"headers": {"auto-submitted": "auto-generated"}}, DropReason.MACHINE),
        ({"headers": {"auto-submitted": "no"}}, None),
        ({"headers": {"x-autoreply": "yes"}}, DropReason.AUTO_REPLY),
        ({"headers": {"x-auto-response-suppress": "OOF, AutoReply"}}, DropReason.AUTO_REPLY),
        ({"headers": {"precedence": "bulk"}}, DropReason.MACHINE),
        ({"headers": {"return-path": "<>"}}, DropReason.BOUNCE),
        ({"headers": {"return-path": "<anna@x.example>"}}, None),
        ({"headers": {"content-type": "multipart/report; report-type=delivery-status"}}, DropReason.BOUNCE),
        ({"headers": {"content-type": "text/calendar; method=REPLY"}}, DropReason.CALENDAR),
        ({"headers": {"feedback-id": "1:2:3"}}, DropReason.MACHINE),
        ({"headers": {"list-id": "<dev.lists.x.example>"}, "sender": "anna@x.example"}, None),
        ({"headers": {"list-id": "<dev.x>"}, "sender": "dev-bounces@lists.x.example"}, DropReason.LIST),
        ({"sender": "MAILER-DAEMON@x.example"}, DropReason.BOUNCE),
        ({"sender": "Shop <no-reply@x.example>"}, DropReason.MACHINE),
        ({"subject": "Automatic reply: lunch"}, DropReason.AUTO_REPLY),
        ({"subject": "Abwesenheitsnotiz: Urlaub"}, DropReason.AUTO_REPLY),
        ({"subject": "Re: Out of office procedures"}, None),
        ({"subject": "Undeliverable: lunch"}, DropReason.BOUNCE),
        ({"subject": "Accepted: lunch @ Tue"}, DropReason.CALENDAR),
        ({"subject": "Zugesagt: Mittagessen"}, DropReason.CALENDAR),
        ({"subject": "Invitation: my birthday"}, None),
        ({"subject": "Invitation: sync", "body_text": "When: Monday\nWhere: room 1"}, DropReason.CALENDAR),
        (
            {"body_text": "When: Monday 3 PM\nWhere: room 1\n\n*~*~*~*~*~*~*~*~*~*\n\nmoved"},
            DropReason.CALENDAR,
        ),
    ],
)
def test_headers_tell_what_no_person_wrote(fields: dict[str, object], reason: DropReason | None) -> None:
    assert drop_by_headers(Mail(id="m", thread_id="t", position=0, **fields)) is reason  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", DropReason.EMPTY),
        (" \n\t\xa0\n", DropReason.EMPTY),
        ("pls print. thanks", DropReason.TOO_SHORT),
        ("word " * 2_001, DropReason.TOO_LONG),
        ("word " * 23_000, DropReason.TOO_LONG),
        ("<OMNI>\n<Notes></Notes>\n<PAB></PAB>\n<ToDos></ToDos>\n</OMNI>", DropReason.TOO_SHORT),
        (
            "\n".join(f"2026-03-03 10:12:{n:02} job step finished without any message" for n in range(9)),
            DropReason.MACHINE,
        ),
        ("Here you go:\npassword: hunter2hunter2hunter2hunter2", DropReason.TOO_SHORT),
        (
            "Here it is\n-----BEGIN RSA PRIVATE KEY-----\n"
            + "MIIEpAIBAAKCAQEA7bq\n" * 20
            + "-----END RSA PRIVATE KEY-----",
            DropReason.SECRET,
        ),
    ],
)
def test_bodies_that_are_no_example_say_why(body: str, reason: DropReason) -> None:
    assert clean(body).drop is reason


def test_a_long_quote_does_not_make_a_mail_too_long() -> None:
    body = f"That is fine with me, please go ahead today.\n\n{GMAIL}\n" + "> word word word\n" * 3_000
    assert clean(body).drop is None


# ---- decoding and paragraphs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("a\x00b\x07c", "abc"),
        ("a\ud800b", "ab"),
        ("one\xa0two\u202fthree", "one two three"),
        ("soft=\nbreak=20\nnext", "softbreak \nnext"),
        ("Ropes\n=====\nPaint\n=====\n", "Ropes\n=====\nPaint\n=====\n"),
        ("caf=C3=A9 =\nou", "café ou"),
        ("x = 20\ny=3", "x = 20\ny=3"),
        ("cafÃ© and itâ€™s", "café and it’s"),
        ("Ära und Öl", "Ära und Öl"),
    ],
)
def test_encoding_leftovers_are_mended(raw: str, text: str) -> None:
    assert normalise_text(raw) == text


WRAPPED = (
    "Hi Bob,\n\nthe committee met again on Monday and, as you may have heard already, it\n"
    "has decided to move the launch to the second week of May. Please tell the\nothers.\n\n"
    "- bring the folder\n- call Anna\n\nExample GmbH\nSeestrasse 1\n8000 Zurich\n\nBest,\nAnna"
)


def test_hard_wrapped_paragraphs_become_one_line_and_the_authors_own_breaks_stay() -> None:
    assert unwrap(WRAPPED) == (
        "Hi Bob,\n\nthe committee met again on Monday and, as you may have heard already, it has decided to "
        "move "
        "the launch to the second week of May. Please tell the others.\n\n- bring the folder\n- call Anna\n\n"
        "Example GmbH\nSeestrasse 1\n8000 Zurich\n\nBest,\nAnna"
    )


@pytest.mark.parametrize(
    "text",
    [
        "Short one.\nShort two.",
        "This sentence was put on a line of its own by its author, on purpose.\n"
        "So was this one, a little below.",
        "name            amount            due date            comment          x\n"
        "Anna            100               Monday",
        "a line that no client wrapped because it runs on and on and on and on and on and on and on and on\n"
        "next",
    ],
)
def test_text_that_no_client_wrapped_stays_as_it_is(text: str) -> None:
    assert unwrap(text) == text


def test_at_most_two_blank_lines_stay() -> None:
    assert clean("one  \n\n\n\n\n\ntwo\n\n\nthree").own_words == "one\n\n\ntwo\n\n\nthree"


# ---- HTML ------------------------------------------------------------------------------------------

HTML_QUOTES = {
    "gmail": f'<div>Fine with me.</div><div class="gmail_quote"><div class="gmail_attr">{GMAIL}</div>'
    '<blockquote class="gmail_quote">lunch?</blockquote></div>',
    "apple": f"<div>Fine with me.</div><div>{GMAIL}</div><blockquote type='cite'><p>lunch?</p></blockquote>",
    "thunderbird": f'<p>Fine with me.</p><div class="moz-cite-prefix">{GMAIL}<br></div>'
    "<blockquote type=cite>lunch?</blockquote>",
    "outlook border": '<p>Fine with me.</p><div style="border:none;'
    'border-top:solid #E1E1E1 1.0pt;padding:3.0pt 0in">'
    "<p><b>From:</b> Bob</p></div><p>lunch?</p>",
    "outlook web": "<div>Fine with me.</div><div id=appendonsend></div><hr><div>lunch?</div>",
    "yahoo": '<div>Fine with me.</div><div class="yahoo_quoted"><div>lunch?</div></div>',
}


@pytest.mark.parametrize("name", HTML_QUOTES)
def test_quote_blocks_of_html_mail_are_cut(name: str) -> None:
    cleaned = clean(
        "", body_html=f"<html><head><style>p {{}}</style></head><body>{HTML_QUOTES[name]}</body></html>"
    )
    assert cleaned.own_words == "Fine with me."


def test_inline_answers_between_html_quotes_stay() -> None:
    body = (
        f'<div>Hi Bob</div><div class="gmail_quote"><div>{GMAIL}</div>'
        '<blockquote class="gmail_quote">a?</blockquote>'
        '<div>first</div><blockquote class="gmail_quote">b?</blockquote><div>second</div></div>'
    )
    assert clean("", body_html=body).own_words == "Hi Bob\n\nfirst\n\nsecond"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<p>a</p><p>b</p>", "a\n\nb"),
        ("<div>a</div><div>b<br>c</div>", "a\nb\nc"),
        ("<ul><li>a</li><li>b</li></ul>", "- a\n- b"),
        ("<ul><li><div>a</div></li><li><p>b</p></li></ul>", "- a\n- b"),
        ("<ol><li>a</li><li>b</li></ol>", "1. a\n2. b"),
        ("<main>a</main><aside>b</aside>", "a\nb"),
        ('<p>a<img alt="🙂" src="x"> <img alt="logo" src="y">b</p>', "a🙂 b"),
        ('<div style="display: none">preview</div><p hidden>x</p><p>a</p>', "a"),
        # Apple Mail: one document above an attachment, one below it.
        ("<html><body>a</body></html><html><body>b</body></html>", "a\nb"),
        ("<p>a<script>x()</script>b &amp; c</p>", "ab & c"),
        ("<p>un<b>closed <i>tags", "unclosed tags"),
        ("\x00<<<>>><p", ""),
        ("", ""),
    ],
)
def test_html_becomes_text_and_garbage_does_no_harm(source: str, text: str) -> None:
    assert render_html(source).replace("<<", "").replace(">>", "").strip("<> \n") == text


def test_a_plain_part_that_only_points_to_the_other_is_not_read() -> None:
    stub = "This message is in HTML format. Please use an HTML-capable mail client to read it.\n"
    assert clean(stub, body_html="<p>Fine with me.</p>").own_words == "Fine with me."
    assert clean(stub).own_words == stub.strip()


def test_signs_that_nobody_sees_are_taken_out() -> None:
    assert clean("The har\u00adbour is nee\u00added\u200c now.").own_words == "The harbour is needed now."


@pytest.mark.parametrize(
    "signature",
    [
        '<div class="gmail_signature">Anna Example<br>Head of Sails</div>',
        '<div id="Signature"><p>Anna Example</p><p>Head of Sails</p></div>',
        '<div class="protonmail_signature_block-user">Anna Example<br>Head of Sails</div>',
        '<div name="messageSignatureSection">Anna Example<br>Head of Sails</div>',
    ],
)
def test_a_signature_that_the_program_put_in_is_cut(signature: str) -> None:
    body = f'<div>Fine with me.</div>{signature}<blockquote type="cite">lunch?</blockquote>'
    assert clean("", body_html=body).own_words == "Fine with me."


def test_deep_nesting_does_not_exhaust_the_stack() -> None:
    assert "end" in render_html("<div>" * 200 + "end") and render_html("<div>" * 200_000) == ""


# ---- subjects, languages, duplicates, secrets ------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "cleaned"),
    [
        ("Re: Fwd: AW: WG:  the  plan", "the plan"),
        ("RE[2]: plan", "plan"),
        ("Sv: SV: Antw: R: plan", "plan"),
        ("回复：计划", "计划"),
        ("Result: 3:1", "Result: 3:1"),
        ("Re:", ""),
        ("", ""),
    ],
)
def test_subjects_lose_their_prefixes(subject: str, cleaned: str) -> None:
    assert clean_subject(subject) == cleaned


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Could you please have a look at the draft and tell me what you think?", "en"),
        ("Kannst du mir bitte die Unterlagen schicken? Ich bin noch bis Freitag im Büro.", "de"),
        ("Pourriez-vous m'envoyer les documents avant vendredi ? Je suis au bureau et vous attends.", "fr"),
        ("¿Me puedes mandar los papeles antes del viernes? Estoy en la oficina y no tengo copia.", "es"),
        ("12:30 OEOB 472", UNDETERMINED),
        ("C-Best mtg. in 472, Freedman & Tate holding, Podesta ASAP", UNDETERMINED),
    ],
)
def test_languages_are_named_only_when_certain(text: str, code: str) -> None:
    assert detect_language(text) == code


def test_mail_outside_the_main_language_is_dropped_unless_asked_for() -> None:
    german = (
        "Kannst du mir bitte die Unterlagen schicken? Ich bin noch bis Freitag im Büro und habe keine Kopie."
    )
    bodies = [own_mail(n) for n in range(12)] + [german]
    assert mailbox(bodies).dropped == {DropReason.WRONG_LANGUAGE: 1}
    assert [each.own_words for each in mailbox(bodies, language="de").mails] == [german]
    assert mailbox(bodies).languages == {"en": 12, "de": 1}


def test_the_later_of_two_near_duplicates_goes() -> None:
    text = "the launch moves to the second week of may because the printer needs more time than we thought"
    texts = [text, "something else entirely that nobody wrote before today", text + " again", text.upper()]
    assert find_near_duplicates(texts) == {2: 0, 3: 0}


def test_similar_openings_are_no_duplicates() -> None:
    assert find_near_duplicates([own_mail(n) for n in range(100)]) == {}


@pytest.mark.parametrize(
    "texts",
    [
        [" ".join(f"w{n}" for n in range(200))] * 5_000,
        [" ".join(f"w{n}" for n in range(60)) + f" x{k} y{k} z{k}" * 12 for k in range(4_000)],
    ],
    ids=["all equal", "half shared"],
)
def test_duplicates_are_found_in_linear_time(texts: list[str]) -> None:
    start = time.process_time()
    find_near_duplicates(texts)
    assert time.process_time() - start < 3


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("my card 4111 1111 1111 1111 please", "my card [card number] please"),
        ("order 4111 1111 1111 1112 please", None),
        ("pay to AT61 1904 3002 3457 3201 today", "pay to [account number] today"),
        ("pay to DE89370400440532013000 NOW", "pay to [account number] NOW"),
        ("pay to AT61 1904 3002 3457 3202 today", None),
        ("password: Sommer", "password: [password]"),
        ("the password is Sommer24!", "the password is [password]"),
        ("the password is required for this", None),
        ("Passwort: geheim und mehr", "Passwort: [password] und mehr"),
        ("use sk-abcDEF1234567890abcdef12 for it", "use [API key] for it"),
        ("key AKIAIOSFODNN7EXAMPLE is old", "key [API key] is old"),
        ("api_key = 9f8a7b6c5d4e3f2a1b", "api_key = [API key]"),
        ("Your verification code is 482913", "Your verification code is [code]"),
        ("area code 713 and zip code 77046", None),
        ("call 713-853-5800 or 713-646-8272", None),
        ("see https://x.example/reset?token=abcd1234efgh", "see [link]"),
        ("see https://x.example/page?id=12", None),
        ("we met on 03/03/2026 at 10:12 in 2026", None),
    ],
)
def test_secrets_are_replaced_and_plain_numbers_are_not(text: str, redacted: str | None) -> None:
    found = redact(text)
    assert found.text == (redacted or text)
    assert found.count == (1 if redacted else 0)


# ---- mailboxes -------------------------------------------------------------------------------------


def test_every_mail_is_either_usable_or_dropped_with_a_reason() -> None:
    cleaned = mailbox([own_mail(1), "", "too short", own_mail(2), own_mail(1)])
    assert [each.id for each in cleaned.mails] == ["m0", "m3"]
    assert cleaned.drop_of == {
        "m1": DropReason.EMPTY,
        "m2": DropReason.TOO_SHORT,
        "m4": DropReason.NEAR_DUPLICATE,
    }
    assert sum(cleaned.dropped.values()) == 3


def test_a_log_mailbox_is_machine_written_and_says_why() -> None:
    bodies = [
        f"Start date: 10/{n % 28 + 1}/26; schedule hour: {n % 24}; no ancillary schedules were awarded, no "
        f"variances "
        f"detected in run {n * 37}."
        for n in range(60)
    ]
    cleaned = mailbox(bodies)
    assert cleaned.machine_written
    assert "60 of 60" in cleaned.machine_reason
    assert cleaned.mails == []


def test_a_person_who_often_opens_alike_is_no_machine() -> None:
    assert not mailbox([f"Thank you for your email.\n\n{own_mail(n)}" for n in range(60)]).machine_written


def test_progress_ends_with_all_mails_done() -> None:
    seen: list[tuple[int, int]] = []
    mailbox([own_mail(n) for n in range(7)], on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 7) for n in range(1, 8)]


def test_a_calendar_part_with_a_method_is_the_calendars_own_mail() -> None:
    words = "You are invited to the launch of the cutter on Saturday at ten, bring boots"
    assert clean(words, headers={"x-ownvoice-calendar": "REQUEST"}).drop is DropReason.CALENDAR
    assert clean(words, headers={"x-ownvoice-calendar": "NONE"}).drop is None


def test_a_signature_that_begins_the_body_is_no_text_of_its_own() -> None:
    text = (
        "-- \nAnna Smith, builder of boats of every kind since 1997\nThe Slip, Wexmouth, by the old harbour"
    )
    assert clean(text).own_words == ""


def test_parts_and_whole_lines_that_are_cut_never_overlap() -> None:
    tail = 'Anna "Annie" Berg from Main Street\nGreen House'
    bodies = [f"Mail number {n} is about the quay and the lamps on it.\n{tail}" for n in range(9)]
    quoted = f'I call it "a thing one two three four five six seven eight nine ten eleven\n{tail}'
    cleaned = clean_mailbox([mail(body, n) for n, body in enumerate([*bodies, quoted])])
    text = clean_mail(mail(quoted), cleaned.learnt)
    assert "Berg" not in text.own_words
    cuts = sorted((cut.start, cut.end) for cut in text.cuts)
    assert all(end <= start for (_, end), (start, _) in pairwise(cuts))


def test_many_holes_cost_little() -> None:
    started = time.process_time()
    clean_mail(mail("answers to your questions\n" + "1. aaa bbb?\n" * 8_000))
    clean_mail(mail('"a b c d e f g h i j k l" x ' * 3_500))
    clean_mail(mail("plan themes:\n" * 1_400 + "We must go. " * 6_000))
    clean_mail(mail("Record Type: Record P6/\n" + ("a" + "=" * 490 + "!!\n") * 180))
    clean_mail(mail("Record Type: Record P6/\n" + ("a" + " " * 490 + "b\n") * 180))
    assert time.process_time() - started < 5
