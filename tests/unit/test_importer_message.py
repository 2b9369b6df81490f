"""One message from bytes: the usual ways in which mail is wrong."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.importers.message import (
    MAX_MESSAGE_BYTES,
    Unparsable,
    canonical_address,
    decode_text,
    parse_date,
    parse_message,
    storable,
    subject_thread,
)
from store.importers.source import found_message
from store.mail import join_addresses, split_addresses


def mail(headers: str = "", body: bytes | str = b"Hello") -> bytes:
    raw_body = body if isinstance(body, bytes) else body.encode()
    return f"From: Anna <anna@example.org>\r\n{headers}".encode() + b"\r\n" + raw_body


def multipart(*parts: bytes, kind: str = "mixed") -> bytes:
    body = b"".join(b"--B\r\n" + part + b"\r\n" for part in parts) + b"--B--\r\n"
    return mail(f'Content-Type: multipart/{kind}; boundary="B"\r\n', body)


PLAIN = b"Content-Type: text/plain; charset=utf-8\r\n\r\nPlain"
HTML = b"Content-Type: text/html\r\n\r\n<p>Rich</p>"


# ---- bodies ----------------------------------------------------------------------------------------


def test_plain_and_html_alternatives_are_both_kept() -> None:
    got = parse_message(multipart(PLAIN, HTML, kind="alternative"))
    assert (got.body_text, got.body_html) == ("Plain", "<p>Rich</p>")


def test_html_only_mail_has_no_text() -> None:
    got = parse_message(mail("Content-Type: text/html\r\n", "<b>x</b>"))
    assert (got.body_text, got.body_html) == (None, "<b>x</b>")


def test_attachments_and_forwarded_messages_are_stepped_over() -> None:
    notes = b"Content-Type: text/plain\r\nContent-Disposition: attachment; filename=a.txt\r\n\r\nsecret notes"
    inner = b"Content-Type: message/rfc822\r\n\r\nFrom: bert@example.org\r\n\r\nnot mine"
    image = b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\n!!not base64!!"
    assert parse_message(multipart(PLAIN, notes, inner, image)).body_text == "Plain"


def test_nested_multiparts_with_boundaries_that_are_prefixes_are_told_apart() -> None:
    inner = b'Content-Type: multipart/alternative; boundary="BB"\r\n\r\n--BB\r\n' + PLAIN + b"\r\n--BB--"
    assert parse_message(multipart(inner, HTML)).body_text == "Plain"


def test_missing_last_boundary_and_missing_boundary_still_give_the_text() -> None:
    cut = multipart(PLAIN)[: -len(b"\r\n--B--\r\n")]
    assert parse_message(cut).body_text == "Plain"
    never = mail('Content-Type: multipart/mixed; boundary="never"\r\n', "Just text")
    assert parse_message(never).body_text == "Just text"


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("base64", base64.encodebytes("Grüße".encode())),
        ("BASE64", base64.b64encode("Grüße".encode()).rstrip(b"=") + b"*"),
        ("quoted-printable", b"Gr=C3=BC=\r\n=C3=9Fe"),
        ("8bit", "Grüße".encode()),
    ],
)
def test_transfer_encodings(encoding: str, body: bytes) -> None:
    got = parse_message(mail(f"Content-Transfer-Encoding: {encoding}\r\n", body))
    assert got.body_text is not None and got.body_text.startswith("Grü")


@pytest.mark.parametrize(
    ("charset", "data", "text"),
    [
        ("us-ascii", "Grüße".encode(), "Grüße"),
        ("iso-8859-1", "Grüße".encode(), "Grüße"),
        ("iso-8859-1", b"caf\xe9 \x93quoted\x94", "café “quoted”"),
        ("utf-8", b"caf\xe9", "café"),
        ("utf-16", b"plain ASCII!", "plain ASCII!"),
        ("koi8-r", "привет".encode("koi8-r"), "привет"),
        ("no-such-charset", b"caf\xe9", "café"),
        ("hex", b"abc", "abc"),
        (None, b"\xef\xbb\xbfbom", "bom"),
    ],
)
def test_charsets_that_lie(charset: str | None, data: bytes, text: str) -> None:
    assert decode_text(data, charset) == text


def test_nul_and_lone_surrogates_never_reach_the_database() -> None:
    assert storable("a\0b\ud800c") == "ab\ufffdc"
    got = parse_message(mail("Subject: a\0b\r\nMessage-ID: <i\0d@x>\r\n", b"x\0y"))
    assert (got.subject, got.message_id, got.body_text) == ("ab", "id@x", "xy")


@pytest.mark.parametrize(
    ("part", "method"),
    [
        (b"Content-Type: text/calendar; method=REPLY\r\n\r\nBEGIN:VCALENDAR", "REPLY"),
        (b"Content-Type: text/calendar\r\n\r\nBEGIN:VCALENDAR\r\nMETHOD:request\r\n", "REQUEST"),
        (b"Content-Type: text/calendar\r\n\r\nBEGIN:VCALENDAR", "NONE"),
    ],
)
def test_calendar_part_becomes_a_header(part: bytes, method: str) -> None:
    assert parse_message(multipart(PLAIN, part)).headers["x-ownvoice-calendar"] == method


# ---- headers ---------------------------------------------------------------------------------------


def test_encoded_words_and_folded_headers_are_read() -> None:
    got = parse_message(
        b"From: =?utf-8?q?M=C3=BCller=2C_Jan?= <Jan@Example.org>\r\n"
        b"To: =?utf-8?q?Li=2C_Wei?= <wei@example.org>,\r\n bert@example.org\r\n"
        b"Subject: =?iso-8859-1?q?Gr=FC=DFe?=\r\n =?utf-8?b?IGF1cw==?= Bonn\r\n\r\nx"
    )
    assert (got.sender, got.sender_address) == ("Müller, Jan <Jan@Example.org>", "jan@example.org")
    assert split_addresses(got.to) == ('"Li, Wei" <wei@example.org>', "bert@example.org")
    assert got.subject == "Grüße aus Bonn"


@pytest.mark.parametrize(
    "header",
    [
        "anna@example.org",
        "Anna <anna@example.org>",
        '"B, Anna" <anna@example.org>',
        "<ANNA@example.org>",
        "Anna B [anna@example.org]",
    ],
)
def test_sender_address_is_found(header: str) -> None:
    assert parse_message(f"From: {header}\nTo: x\n\nhi".encode()).sender_address == "anna@example.org"


def test_only_the_headers_that_filters_read_are_kept() -> None:
    got = parse_message(
        mail(
            "Received: from a by b\r\nX-Spam: no\r\nReferences: <r@x>\r\n"
            "List-Id: <dev.example.org>\r\nPrecedence: bulk\r\n"
        )
    )
    assert got.headers == {"list-id": "<dev.example.org>", "precedence": "bulk", "references-present": "1"}


def test_thread_is_gmails_then_references_then_the_answered_then_the_subject() -> None:
    assert parse_message(mail("X-GM-THRID: 17\r\nReferences: <r@x>\r\n")).thread_id == "gm:17"
    got = parse_message(
        mail("References: <root@x> <mid@x>\r\nIn-Reply-To: <mid@x>\r\nMessage-ID: <new@x>\r\n")
    )
    assert (got.thread_id, got.in_reply_to, got.message_id) == ("root@x", "mid@x", "new@x")
    assert parse_message(mail("In-Reply-To: <mid@x>\r\n")).thread_id == "mid@x"
    assert parse_message(mail("Subject: Plan\r\nMessage-ID: <root@x>\r\n")).thread_id == "root@x"
    to = "To: bert@example.org\r\n"
    answer = parse_message(mail(f"Subject: AW: Re: Plan\r\nMessage-ID: <1@x>\r\n{to}"))
    again = parse_message(mail(f"Subject: RE: plan\r\nMessage-ID: <2@x>\r\n{to}"))
    assert answer.thread_id == again.thread_id != "1@x"


def test_mail_without_subject_or_thread_headers_is_alone() -> None:
    assert subject_thread("Re: ", ["a@x.org"], "id-1") == "id-1"


def test_missing_message_id_is_derived_from_the_content_alone() -> None:
    first = parse_message(mail("Subject: Plan\r\nX-Gmail-Labels: Sent\r\n", "same words"))
    again = parse_message(mail("Subject: Plan\r\nX-Gmail-Labels: Sent,Work\r\n", "same words\r\n"))
    other = parse_message(mail("Subject: Plan\r\n", "other words"))
    assert first.message_id == again.message_id != other.message_id


def test_endless_message_id_fits_the_index() -> None:
    assert len(parse_message(mail(f"Message-ID: <{'x' * 5000}@y>\r\n")).message_id) < 100


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("Mon, 03 Feb 2020 10:00:00 +0200", datetime(2020, 2, 3, 8, tzinfo=UTC)),
        ("Mon, 03 Feb 2020 10:00:00", datetime(2020, 2, 3, 10, tzinfo=UTC)),
        ("Mon, 03 Feb 2020 10:00:00 -0000", datetime(2020, 2, 3, 10, tzinfo=UTC)),
        ("2020-02-03T10:00:00+02:00", datetime(2020, 2, 3, 8, tzinfo=UTC)),
        ("2020-02-03T10:00:00", datetime(2020, 2, 3, 10, tzinfo=UTC)),
        ("Thu, 01 Jan 1970 00:00:00 +0000", None),
        ("Mon, 31 Dec 1979 23:00:00 -0500", None),
        ("Tue, 01 Jan 2999 00:00:00 +0000", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("OS/28/97 10:00", None),
        ("", None),
    ],
)
def test_dates_are_utc_or_none(date: str, expected: datetime | None) -> None:
    assert parse_date(date) == expected


def test_a_clock_two_days_fast_is_believed_and_three_days_is_not() -> None:
    now = datetime.now(UTC)
    assert parse_date((now + timedelta(days=1.9)).isoformat()) is not None
    assert parse_date((now + timedelta(days=3)).isoformat()) is None


def test_gmail_spellings_of_one_mailbox_are_equal_and_others_are_not() -> None:
    assert canonical_address("An.Na+x@GoogleMail.com") == canonical_address("anna@gmail.com")
    assert canonical_address("an.na@example.org") != canonical_address("anna@example.org")


@pytest.mark.parametrize(
    ("label", "sent", "unsent"),
    [("Sent", True, False), ('Inbox,"Sent"', True, False), ("Drafts", False, True), ("Inbox", False, False)],
)
def test_gmail_labels_tell_sent_from_draft(label: str, sent: bool, unsent: bool) -> None:
    got = parse_message(mail(f"X-Gmail-Labels: {label}\r\n"))
    assert (got.in_sent_folder, got.unsent) == (sent, unsent)


def test_recipients_survive_the_column() -> None:
    people = ["Li, Wei", "Bert <b@example.org>", "c@example.org"]
    assert split_addresses(join_addresses(people)) == tuple(people)


# ---- what cannot be used ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "empty"),
        (b"\r\n \r\n", "empty"),
        (b"no colon anywhere\n\nbody", "no_headers"),
        (b"x" * (MAX_MESSAGE_BYTES + 1), "too_large"),
    ],
)
def test_unusable_message_names_its_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(Unparsable) as refused:
        parse_message(raw)
    assert refused.value.reason == reason


HOSTILE = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from(
            [
                b"\r\n", b"\n\n", b"From: ", b"=?utf-8?b?", b"=?x?q?=zz?=", b"--B\n", b"--B--",
                b"Content-Type: multipart/mixed; boundary=B\n", b"Content-Transfer-Encoding: base64\n",
                b"Date: ", b"charset*0*=utf-7''", b"\0", b"\xff", b"To: <<,;:@>>\n", b'"\\', b"(((",
                b"Content-Type: text/calendar; method=\n", b"References: <a> <b\n",
            ]
        ),
    ),
    max_size=25,
).map(b"".join)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(HOSTILE)
def test_no_bytes_break_the_parser(raw: bytes) -> None:
    found = found_message(b"From: a@example.org\n" + raw, "")
    assert found.broken != "unparsable"
    if found.message is not None:
        for text in (
            found.message.subject,
            found.message.to,
            found.message.body_text or "",
            found.message.sender,
        ):
            text.encode()  # no lone surrogate
            assert "\0" not in text
