"""Hostile and broken mail: the parser and the cleaner never raise, take a second, or ten times its memory."""

from __future__ import annotations

import base64
import json
import quopri
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.clean import as_mail
from store.importers.jsonl import JsonLines, parse_line
from store.importers.message import Message, Unparsable, parse_message
from tests.benchmarks.mailboxes import SHARED
from training.config import DataConfig
from training.dataset import prepare, to_jsonl
from training.mail.clean import clean_mailbox
from training.mail.explain import explain

HANG_S = 1.0
"""Processor seconds of this thread for one mail, which a busy machine does not add to. The worst giant takes
0.2."""
MEMORY_FACTOR = 10
MEMORY_FLOOR = 250_000
"""Bytes that any mail may take besides, as objects and caches do: 35 kB for one of 2 kB, and 150 kB for the
worst giant of a megabyte, whose lines alternate between quote and own word."""

FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


# ---- what must hold for any bytes --------------------------------------------------------------------


def parsed(raw: bytes) -> Message | None:
    """Parse; the only thing that may be raised is a reason to count the mail as broken."""
    try:
        return parse_message(raw)
    except Unparsable:
        return None


def clean(message: Message) -> None:
    """Clean one mail and check what the rest of the pipeline relies on."""
    mail = as_mail(message)
    told = explain(mail)
    assert told.kept is (told.drop_reason is None)
    position = 0
    for start, end in sorted([*told.own, *((cut.text_start, cut.text_end) for cut in told.cut)]):
        assert position <= start <= end <= len(told.text)
        position = end
    json.dumps(told.as_dict()).encode()
    for text in (
        message.subject,
        message.sender,
        message.to,
        message.body_text or "",
        message.body_html or "",
    ):
        assert "\0" not in text  # PostgreSQL refuses it
        text.encode("utf-8")  # and lone surrogates


def survives(raw: bytes) -> None:
    started = time.thread_time()
    message = parsed(raw)
    if message is not None:
        clean(message)
    assert time.thread_time() - started < HANG_S


def peak_memory(raw: bytes) -> int:
    """Return the most bytes that Python objects took while the mail went through, without the mail."""
    tracemalloc.start()
    try:
        message = parsed(raw)
        if message is not None:
            explain(as_mail(message))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# ---- random MIME trees -------------------------------------------------------------------------------

CHARSETS = st.sampled_from(
    ["utf-8", "us-ascii", "iso-8859-1", "windows-1252", "utf-16", "utf-7", "gb2312", "koi8-r", "shift_jis",
     "hz", "iso-2022-jp", "rot13", "zlib", "idna", "no-such", "", "utf-8\0", "x" * 300, '"', "unicode_escape"]
)  # fmt: skip
REAL_CHARSETS = st.sampled_from(["utf-8", "iso-8859-1", "utf-16", "koi8-r", "shift_jis", "cp1252"])
TYPES = st.sampled_from(
    ["text/plain", "text/html", "text/calendar; method=REQUEST", "text/enriched", "TEXT/PLAIN", "text", "/",
     "message/rfc822", "application/octet-stream", "image/png", "multipart/mixed", "; charset=x", ""]
)  # fmt: skip
ENCODINGS = st.sampled_from(
    ["7bit", "8bit", "base64", "quoted-printable", "x-uuencode", "binary", "", "BASE64 "]
)
LINES = st.one_of(
    st.sampled_from(
        ["On Tue, 3 Mar 2026 at 10:12, Bob Lee <bob@x.example> wrote:", "-----Original Message-----",
         "> quoted", ">> >", "From: Bob", "To: me", "Subject: RE:", "-- ", "--",
         "---------- Forwarded message ----------",
         "Anna", "<div class=3Dgmail_quote>", "<blockquote>", "</blockquote>", "<p>hello", "=E9=", "=",
         "&#0;&#x110000;&nbsp", "Am 3. März 2026 schrieb Bob:", "Sent from my phone", "password: x1y2", "\0",
         "\ufeff", "\u202e", "\ud7ff"]
    ),
    st.text(max_size=120),
)  # fmt: skip
BODIES = st.lists(LINES, max_size=25).map("\n".join)


@st.composite
def leaves(draw: st.DrawFn) -> bytes:
    """One part whose declared charset and encoding need not be those of its bytes."""
    data = draw(st.one_of(BODIES.flatmap(lambda text: REAL_CHARSETS.map(
        lambda charset: text.encode(charset, "replace"))), st.binary(max_size=400)))  # fmt: skip
    encoding = draw(ENCODINGS)
    if draw(st.booleans()):
        data = {"base64": base64.encodebytes, "quoted-printable": quopri.encodestring}.get(
            encoding, lambda whole: whole
        )(data)
    head = f"Content-Type: {draw(TYPES)}; charset={draw(CHARSETS)}\nContent-Transfer-Encoding: {encoding}\n"
    return head.encode() + b"\n" + data


@st.composite
def multiparts(draw: st.DrawFn, children: st.SearchStrategy[bytes]) -> bytes:
    """A multipart whose boundary may be missing, doubled, empty, or a prefix of its child's."""
    boundary = draw(st.sampled_from(["b", "bb", "b1", "", " ", "=_x", "b" * 80, "ü"]))
    kind = draw(st.sampled_from(["mixed", "alternative", "related", "report", "signed", ""]))
    parts = draw(st.lists(children, max_size=4))
    mark = f"--{boundary}".encode()
    body = b"".join(mark + b"\r\n" + part + b"\r\n" for part in parts)
    if draw(st.booleans()):
        body += mark + b"--\r\n"
    said = draw(st.sampled_from([f'; boundary="{boundary}"', f"; boundary={boundary}", "", '; boundary="']))
    return f"Content-Type: multipart/{kind}{said}\n\n".encode() + body


TREES = st.recursive(leaves(), multiparts, max_leaves=12)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            ["From", "To", "Cc", "Subject", "Date", "Message-ID", "References", "In-Reply-To", "X-Gm-Thrid",
             "List-Id", "Auto-Submitted", "X-Gmail-Labels", "Return-Path", "Precedence", "", "X y", "From"]
        ),
        st.one_of(
            st.text(max_size=80),
            st.sampled_from(
                ["Anna <anna@x.example>", "=?utf-8?B?//8=?=", "=?x?Q?=E9?= <a@b>", "=?utf-8?B?YQ?= =?",
                 "=?utf-8?B?=?utf-8?B?", "(" * 3_000, "<" * 50,
                 '"a, b" <c@d>, (((', "Tue, 99 Foo 2026 99:99:99 +9999", "Mon, 1 Jan 0001 00:00:00 +2359",
                 "<a@b>" * 30, "a\n b\n\tc", "group: a@b, c@d;", "@", "\0", "Re: " * 60]
            ),
        ),
    ),
    max_size=10,
)  # fmt: skip


@FUZZ
@given(HEADERS, TREES, st.binary(max_size=20))
def test_random_mime_trees_survive(headers: list[tuple[str, str]], tree: bytes, tail: bytes) -> None:
    head = "".join(f"{name}: {value}\n" for name, value in headers)
    survives(head.encode("utf-8", "replace") + tree + tail)


@FUZZ
@given(st.binary(max_size=2_000))
def test_random_bytes_survive(raw: bytes) -> None:
    survives(raw)
    survives(b"From: a@x.example\nSubject: x\n\n" + raw)


@FUZZ
@given(
    st.dictionaries(
        st.sampled_from(["body", "body_html", "from", "to", "cc", "subject", "date", "message_id"]),
        st.one_of(BODIES, st.none(), st.integers(), st.lists(st.text(max_size=20), max_size=3), st.floats(),
                  st.dictionaries(st.sampled_from(["address", "name", "email"]), st.text(max_size=20)))
    )
)  # fmt: skip
def test_random_json_lines_survive(row: dict[str, object]) -> None:
    try:
        message = parse_line(json.dumps(row).encode())
    except Unparsable:
        return
    clean(message)


# ---- mutated real structures -------------------------------------------------------------------------

OUTLOOK = """From: Anna Tolquay <anna@x.example>
To: "Lee, Bob" <bob@y.example>
Subject: RE: the mast
Date: Tue, 3 Mar 2026 10:12:00 +0000
Message-ID: <1@x.example>
In-Reply-To: <0@y.example>
MIME-Version: 1.0
Content-Type: multipart/alternative; boundary="=_outer"

--=_outer
Content-Type: text/plain; charset="utf-8"
Content-Transfer-Encoding: quoted-printable

The mast is glued and dries until Friday, so the paint can wait for a while=
 longer. I=E2=80=99ll call the yard.

Anna

-----Original Message-----
From: Bob Lee [mailto:bob@y.example]
Sent: Monday, March 2, 2026 9:00 AM
To: Anna Tolquay
Subject: the mast

> How is the mast?
--=_outer
Content-Type: text/html; charset="iso-8859-1"
Content-Transfer-Encoding: base64

PGRpdj5UaGUgbWFzdCBpcyBnbHVlZDxicj48YmxvY2txdW90ZSB0eXBlPSJjaXRlIj5Ib3cgaXMg
dGhlIG1hc3Q/PC9ibG9ja3F1b3RlPjwvZGl2Pg==
--=_outer--
"""
GMAIL = """From: =?utf-8?Q?Zo=C3=AB?= <zoe@x.example>
To: bob@y.example
Subject: =?utf-8?B?UmU6IFRoZSBtYXN0?=
Date: Wed, 4 Mar 2026 11:00:00 +0100
References: <a@y.example> <b@y.example>
Content-Type: multipart/mixed; boundary=m

--m
Content-Type: multipart/related; boundary=mm

--mm
Content-Type: text/html; charset=utf-8

<html><body><p>Yes, on <b>Friday</b>.</p><p>Zo&euml;</p><div class="gmail_quote">On Tue, 3 Mar 2026 at
10:12, Bob &lt;<a href="mailto:bob@y.example">bob@y.example</a>&gt; wrote:<blockquote>Can
 you come?</blockquote></div></body></html>
--mm
Content-Type: image/png
Content-Transfer-Encoding: base64

iVBORw0KGgo=
--mm--
--m
Content-Type: message/rfc822

From: carl@z.example
Subject: inner

Somebody else's words.
--m
Content-Type: text/calendar; method=REQUEST

BEGIN:VCALENDAR
--m--
"""
PLAIN = """Return-Path: <anna@x.example>
From: anna@x.example
To: bob@y.example, carl@z.example
Subject: AW: Mast
Date: Thu, 5 Mar 2026 12:00:00 +0100
Content-Type: text/plain; charset=iso-8859-1

Hallo Bob,

> Kommst du am Freitag?
Ja, um zehn.
> Und bringst du den Lack mit?
Den habe ich schon bestellt, er kommt am Donnerstag.

Gruss
Anna

--
Anna Tolquay, Bootsbau

Am 03.03.2026 um 10:12 schrieb Bob Lee:
> Noch eine Frage.
>> Und eine davor.
________________________________
This e-mail is confidential.
"""
STRUCTURES = [
    OUTLOOK.encode(),
    GMAIL.encode(),
    PLAIN.encode("latin-1"),
    OUTLOOK.replace("\n", "\r\n").encode(),
]


Damage = Callable[[bytes, int, int, random.Random], bytes]
"""(mail, start, end, chance) → a mail that is damaged between start and end, or throughout."""
DAMAGES: tuple[Damage, ...] = (
    lambda raw, start, end, chance: raw[:start],
    lambda raw, start, end, chance: raw[start:],
    lambda raw, start, end, chance: raw[:start] + raw[end:],
    lambda raw, start, end, chance: raw[:start] + raw[start:end] * chance.choice((2, 40)) + raw[end:],
    lambda raw, start, end, chance: raw[:start] + chance.randbytes(end - start) + raw[end:],
    lambda raw, start, end, chance: raw[:start] + b"\0" * (end - start) + raw[start:],
    lambda raw, start, end, chance: raw[:start] + chance.choice(STRUCTURES)[end - start :] + raw[start:],
    lambda raw, start, end, chance: raw.replace(bytes([chance.choice(b'\n>-=;" ')]), b"", 1),
    lambda raw, start, end, chance: raw.replace(chance.choice((b"utf-8", b"iso-8859-1")), b"utf-16"),
    lambda raw, start, end, chance: raw.replace(b"quoted-printable", b"base64"),
    lambda raw, start, end, chance: raw.replace(b"\n", b"\r", chance.choice((1, -1))),
    lambda raw, start, end, chance: b"\n".join(chance.sample(raw.split(b"\n"), raw.count(b"\n") + 1)),
    lambda raw, start, end, chance: raw.replace(b"mm", b"m"),
)


def mutated(raw: bytes, chance: random.Random) -> bytes:
    """Damage a mail the way transports, exports and attackers do, one to six times."""
    for _ in range(chance.randint(1, 6)):
        start = chance.randrange(len(raw) + 1)
        end = min(len(raw), start + chance.choice((1, 3, 20, 200)))
        raw = chance.choice(DAMAGES)(raw, start, end, chance)[:200_000]
    return raw


@pytest.mark.parametrize("seed", range(8))
def test_mutated_real_structures_survive(seed: int) -> None:
    chance = random.Random(seed)
    for number in range(60):
        survives(mutated(STRUCTURES[number % len(STRUCTURES)], chance))


def test_a_mailbox_of_mutants_is_cleaned_as_a_whole_and_can_be_written() -> None:
    chance = random.Random(99)
    found = [parsed(mutated(STRUCTURES[n % len(STRUCTURES)], chance)) for n in range(120)]
    mails = [
        as_mail(message).model_copy(update={"id": f"m{n}", "position": n})
        for n, message in enumerate(found)
        if message is not None
    ]
    cleaned = clean_mailbox(mails)
    assert len(cleaned.mails) + len(cleaned.drop_of) == len(mails) > 60
    prepared = prepare(mails, DataConfig(min_usable=10))
    to_jsonl([*prepared.train, *prepared.held_out]).encode("utf-8")


# ---- giants ------------------------------------------------------------------------------------------

HEAD = b"From: Anna <a@x.example>\nTo: b@y.example\nSubject: s\n"
HTML = HEAD + b"Content-Type: text/html; charset=utf-8\n\n"


def nested(depth: int, inside: bytes) -> bytes:
    opening = b"".join(
        b'Content-Type: multipart/mixed; boundary="b%d"\n\n--b%d\n' % (n, n) for n in range(depth)
    )
    closing = b"".join(b"\n--b%d--\n" % n for n in reversed(range(depth)))
    return HEAD + opening + inside + closing


def giants() -> Iterator[tuple[str, bytes]]:
    """Mails of about a megabyte, each built against one loop."""
    words = b"the mast is glued and dries until friday so the paint can wait. "
    text = b"Content-Type: text/plain\n\n" + words * 12_000
    yield "plain text", HEAD + text
    yield "19 multiparts around a megabyte", nested(19, text)
    yield "3,000 multiparts", nested(3_000, text)
    yield (
        "parts without end",
        HEAD + b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\nx\n" * 120_000,
    )
    yield (
        "boundaries that are prefixes",
        HEAD + b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--bb\n" * 200_000,
    )
    yield "one header of a megabyte", HEAD + b"Subject: " + b"x" * 1_000_000 + b"\n\nhi"
    yield "a folded header", b"From: a@x.example\nReferences:" + b"\n <a@b>" * 140_000 + b"\n\nhi"
    yield "encoded words", b"From: a@x.example\nSubject: " + b"=?utf-8?Q?=E9?= " * 60_000 + b"\n\nhi"
    yield "broken encoded words", b"From: " + b"=?utf-8?B?" * 100_000 + b"\n\nhi"
    yield "recipients", b"From: a@x.example\nTo: " + b"=?utf-8?Q?a?= <a@b.example>, " * 35_000 + b"\n\nhi"
    yield "open brackets in an address", b"From: " + b"(" * 500_000 + b"<" * 500_000 + b"\n\nhi"
    yield "quotes in an address", b'From: "' + b'\\"' * 500_000 + b"\n\nhi"
    yield "parameters", HEAD + b"Content-Type: text/plain" + b"; a*0*=x''%e9" * 70_000 + b"\n\nhi"
    yield "header lines", b"".join(b"X-%d: y\n" % n for n in range(90_000)) + HEAD + b"\nhi"
    yield "NUL bytes", HEAD + b"\n" + b"\0" * 1_000_000
    yield "broken base64", HEAD + b"Content-Transfer-Encoding: base64\n\n" + b"YQ=!\xff" * 200_000
    yield (
        "quoted-printable",
        HEAD + b"Content-Transfer-Encoding: quoted-printable\n\n" + b"=E9=\n=3" * 150_000,
    )
    yield "UTF-16 that is none", HEAD + b"Content-Type: text/plain; charset=utf-16\n\n" + b"\xd8\0" * 500_000
    yield "quote marks", HEAD + b"\n" + b"> " * 500_000
    yield "quoted lines", HEAD + b"\nhi\n" + b"> a\n" * 250_000
    yield "deepening quotes", HEAD + b"\n" + b"".join(b">" * n + b" a\n" for n in range(1_400))
    yield "alternating quotes", HEAD + b"\n" + b"> a\nb\n" * 160_000
    yield "attributions", HEAD + b"\n" + b"On Tue, 3 Mar 2026 at 10:12, Bob wrote:\n" * 25_000
    yield "attributions without end", HEAD + b"\n" + b"On Tuesday " * 90_000
    yield (
        "original messages",
        HEAD + b"\n" + b"-----Original Message-----\nFrom: b\nTo: c\nSubject: d\n\n" * 17_000,
    )
    yield "forwards", HEAD + b"\n" + b"---------- Forwarded message ----------\nFrom: b@y.example\n" * 17_000
    yield "header blocks", HEAD + b"\n" + b"From: b\nSent: c\nTo: d\n" * 45_000
    yield "signature marks", HEAD + b"\n" + b"-- \nAnna\n" * 110_000
    yield "blank lines", HEAD + b"\nhi" + b"\n" * 1_000_000 + b"hi"
    yield "remains in a scanned mail", HEAD + b"\nARMS Email\n b\na\n" + b" b\n\n\n\n" * 160_000
    yield "blanks", HEAD + b"\nhi" + b" " * 1_000_000 + b"x"
    yield "one word", HEAD + b"\n" + b"a" * 1_000_000
    yield "dashes", HEAD + b"\n" + b"-" * 1_000_000
    yield "underscores and dots", HEAD + b"\n" + b"_._. " * 200_000
    yield "addresses", HEAD + b"\n" + b"a@b." * 250_000
    yield "links", HEAD + b"\n" + b"<http://a.example/" * 60_000
    yield "carriage returns", HEAD + b"\n" + b"a\r" * 500_000
    yield "nested elements", HTML + b"<div>" * 200_000
    yield "nested blockquotes", HTML + b"<blockquote>a" * 80_000
    yield "open brackets", HTML + b"<" * 1_000_000
    yield "a torn tag", HTML + b"<p " + b'a="b" ' * 160_000
    yield "comments", HTML + b"<!-- a --" * 110_000
    yield "entities", HTML + b"&amp;&#0;&#x110000;&no" * 45_000
    yield "table cells", HTML + b"<table><tr><td>a" * 60_000
    yield "styles", HTML + b"<style>a{}</style><p>b" * 45_000
    yield "line breaks", HTML + b"<br>a" * 200_000
    yield "links in HTML", HTML + b"<a href='http://x.example'>" * 37_000


GIANTS = dict(giants())


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """Compile patterns and fill caches, which belong to no single mail."""
    for raw in STRUCTURES:
        clean(parse_message(raw))


@pytest.mark.parametrize("giant", GIANTS)
def test_a_giant_is_neither_an_error_nor_a_hang(giant: str) -> None:
    survives(GIANTS[giant])


@pytest.mark.parametrize("giant", GIANTS)
def test_a_giant_takes_less_than_ten_times_its_size(giant: str) -> None:
    raw = GIANTS[giant]
    assert peak_memory(raw) < MEMORY_FACTOR * len(raw) + MEMORY_FLOOR


def test_mutants_take_less_than_ten_times_their_size() -> None:
    chance = random.Random(5)
    for number in range(40):
        raw = mutated(STRUCTURES[number % len(STRUCTURES)], chance)
        assert peak_memory(raw) < MEMORY_FACTOR * len(raw) + MEMORY_FLOOR


# ---- every real mail ---------------------------------------------------------------------------------


def as_eml(row: dict[str, object]) -> bytes:
    """Return a mail of a JSONL mailbox as the .eml that a naive exporter would write."""
    to = row.get("to") or []
    names = ", ".join(map(str, to)) if isinstance(to, list) else str(to)
    head = f"From: {row.get('from')}\nTo: {names}\nSubject: {row.get('subject')}\nDate: {row.get('date')}\n\n"
    return (head + str(row.get("body") or "")).encode("utf-8", "replace")


@pytest.mark.shared_data
def test_every_real_mail_goes_through() -> None:
    paths = sorted(SHARED.glob("*.jsonl")) if SHARED.is_dir() else []
    if not paths:
        pytest.skip("no real mailboxes beside the repository")
    count = 0
    for path in paths:
        for found in JsonLines(path, ()):
            assert found.message is not None, f"{path.name}: {found.broken}"
            started = time.thread_time()
            clean(found.message)
            assert time.thread_time() - started < HANG_S
            count += 1
        for line in path.read_text(encoding="utf-8").splitlines():
            survives(as_eml(json.loads(line)))
    for case in json.loads((SHARED.parent / "quote_cases.json").read_text(encoding="utf-8")):
        survives(HEAD + b"\n" + str(case).encode())
    assert count > 5_000
