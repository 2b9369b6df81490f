"""One RFC 5322 message: bytes in, a `Message` out. Reads headers and bodies that are wrong in the usual ways.

The standard library's parser builds the whole tree and decodes attachments on the way (about 1,500 mails a
second here); this one looks at the few headers that are stored and at text parts only, and leans on the
standard library for the hard grammar (addresses, RFC 2047 words, Content-Type parameters, dates).
"""

from __future__ import annotations

import binascii
import codecs
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message as StandardMessage
from email.utils import getaddresses, parsedate_to_datetime
from functools import lru_cache

from store.mail import REPLY_PREFIX, join_addresses

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
"""Providers refuse larger mail (Gmail 25 MB, Outlook 20 MB before encoding): it is no letter."""
MAX_BODY_BYTES = 1024 * 1024
"""Of one text part, before decoding; no mail that a person writes is longer."""
MAX_ID_CHARS = 250
"""Longer ids are replaced by their digest: an index entry has room for about 2,700 bytes."""
MAX_HEADER_CHARS = 1_000
MAX_RECIPIENTS_CHARS = 20_000
MAX_HEADER_BYTES = 32_000
"""Of one header as it stands: the standard library's time and memory for RFC 2047 words are not linear."""
_MAX_CONTENT_TYPE_BYTES = 2_000
MAX_PARTS = 500
MAX_DEPTH = 20
EARLIEST = datetime(1980, 2, 1, tzinfo=UTC)
"""Anything older is the zero of some clock: 1970 (Unix), January 1980 (DOS), 1601 and 1900 (Windows, NTP)."""
LATEST_AHEAD = timedelta(days=2)
"""Time zones and clocks that run fast explain two days, nothing explains more."""

KEPT_HEADERS = frozenset(
    {
        "auto-submitted",
        "precedence",
        "return-path",
        "x-autoreply",
        "x-auto-response-suppress",
        "content-type",
        "feedback-id",
        "content-class",
        "x-autorespond",
        "x-failed-recipients",
        "x-mailer",
        "x-gmail-labels",
        "in-reply-to",
    }
)
"""What the filters of training/mail read, besides `list-*` and the two that are made here."""
_WANTED_HEADERS = KEPT_HEADERS | {
    "from",
    "to",
    "cc",
    "subject",
    "date",
    "message-id",
    "references",
    "x-gm-thrid",
    "content-transfer-encoding",
    "content-disposition",
}

SENT_FOLDERS = frozenset(
    {
        "sent",
        "sent mail",
        "sent items",
        "sent messages",
        "sent objects",
        "gesendet",
        "gesendete elemente",
        "gesendete objekte",
        "envoyés",
        "messages envoyés",
        "éléments envoyés",
        "enviados",
        "elementos enviados",
        "inviata",
        "posta inviata",
        "verzonden",
        "verzonden items",
        "skickat",
        "wysłane",
        "отправленные",
        "送信済み",
    }
)
UNSENT_FOLDERS = frozenset(
    {
        "draft",
        "drafts",
        "entwürfe",
        "brouillons",
        "borradores",
        "bozze",
        "concepten",
        "outbox",
        "spam",
        "junk",
        "chat",
        "chats",
        "templates",
    }
)
"""Mail from the person's address that they did not send: drafts, forgeries in spam, chat lines."""

_UNFOLD = re.compile(rb"\r?\n[ \t]+")
_FOLDED_LINE = re.compile(rb"[^\n]++(?:\n[ \t]++[^\n]*+)*+")
_LONG_BLOCK = 100_000
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_LINE_ENDS = re.compile(rb"[\r\n]*")
_WORDS = re.compile(r"\S+(?:\s+\S+){0,999}")
_FIELD_NAME = re.compile(rb"[!-9;-~]+[ \t]*")
_PLAIN_ADDRESS = re.compile(
    r'^\s*(?:"?([^"<>@,;\\]*?)"?\s*<\s*([^<>\s,]+@[^<>\s,]+)\s*>|([^<>\s,"]+@[^<>\s,"]+))\s*$'
)
_ANY_ADDRESS = re.compile(r"[^\s<>\"(),:;\[\]]+@[^\s<>\"(),:;\[\]]+")
_MESSAGE_ID = re.compile(r"<([^<>\s]+)>")
_REPEATED_PREFIXES = re.compile(
    r"^(?:\s*(?:re|aw|sv|antw|rif|res|odp|vs|ref|fwd?|wg|tr|rv|回复|答复|转发)(?:\[\d+\])?\s*[:\uff1a])+\s*",
    re.IGNORECASE,
)
_CALENDAR_METHOD = re.compile(rb"^METHOD:[ \t]*([A-Za-z]+)", re.MULTILINE)
_BEYOND_ASCII = re.compile("[^\x00-\x7f\ufffd]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_NOT_TEXT_CODECS = frozenset(
    {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem"}
)


@dataclass(slots=True)
class Message:
    """One message before it is known whether the account's owner sent it."""

    message_id: str
    thread_id: str
    in_reply_to: str | None
    sender: str
    sender_address: str
    """Lower-case address of the first author, or empty."""
    to: str
    cc: str
    subject: str
    body_text: str | None
    body_html: str | None
    sent_at: datetime | None
    headers: dict[str, str] = field(default_factory=dict)
    in_sent_folder: bool = False
    unsent: bool = False
    """A draft, spam or chat line: not sent, whoever it is from."""
    ai_generated: bool = False
    """The source says that the AI drafted it; a mail header for that is not known."""

    @property
    def size(self) -> int:
        """Characters of the bodies, near enough to bound a batch."""
        return len(self.body_text or "") + len(self.body_html or "")


class Unparsable(ValueError):
    """One message that cannot be used; `reason` is a key of `ImportReport.broken`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def parse_message(raw: bytes, folder: str = "") -> Message:
    """Read one message. `folder` is the name of where it lay ("Sent", "Drafts" …), if any.

    Raises Unparsable with `empty`, `too_large` or `no_headers`.
    """
    if len(raw) > MAX_MESSAGE_BYTES:
        raise Unparsable("too_large")
    raw = raw.lstrip(b"\r\n")
    if not raw or raw.isspace():
        raise Unparsable("empty")
    headers, body_start = _split(raw, 0, len(raw))
    if not headers:
        raise Unparsable("no_headers")
    parts = _Parts()
    _walk(headers, raw, body_start, len(raw), parts, 0)
    body_text = _join(parts.plain)
    body_html = _join(parts.html)

    sender = _text(headers.get("from", b""))[:MAX_HEADER_CHARS]
    name, address = _first_address(sender) if b"=?" not in headers.get("from", b"") else ("", "")
    if b"=?" in headers.get("from", b""):
        # Addresses first, RFC 2047 words second: a decoded name may hold a comma or a bracket.
        name, address = _first_address(_raw_text(headers["from"])[:MAX_HEADER_CHARS])
        name = _decode_words(name)
        sender = f"{name} <{address}>" if address else sender
    to, cc = _recipients(headers.get("to", b"")), _recipients(headers.get("cc", b""))
    subject = _text(headers.get("subject", b""))[:MAX_HEADER_CHARS]

    references = _MESSAGE_ID.findall(_raw_text(headers.get("references", b"")))
    answered = _MESSAGE_ID.findall(_raw_text(headers.get("in-reply-to", b"")))
    in_reply_to = answered[0] if answered else references[-1] if references else None
    own_id = _own_id(_raw_text(headers.get("message-id", b"")))
    sent_at = parse_date(_raw_text(headers.get("date", b"")))
    message_id = own_id or content_id(
        address or sender, to, str(sent_at), subject, body_text or body_html or ""
    )

    if headers.get("x-gm-thrid"):
        thread_id = f"gm:{_raw_text(headers['x-gm-thrid'])}"
    elif references or answered:
        thread_id = (references or answered)[0]
    elif own_id and not REPLY_PREFIX.match(subject):
        thread_id = own_id  # it opens a conversation: the answers name it in References
    else:
        thread_id = subject_thread(
            subject, [address or sender, *_addresses_in(to), *_addresses_in(cc)], message_id
        )

    kept = {
        name: storable(_raw_text(value))[:MAX_HEADER_CHARS]
        for name, value in headers.items()
        if name in KEPT_HEADERS or name.startswith("list-")
    }
    if "x-gmail-labels" in kept:
        kept["x-gmail-labels"] = _text(headers["x-gmail-labels"])[:MAX_HEADER_CHARS]
    if references:
        kept["references-present"] = "1"
    if parts.calendar is not None:
        kept["x-ownvoice-calendar"] = parts.calendar
    places = {label.strip().strip('"').lower() for label in kept.get("x-gmail-labels", "").split(",")}
    places.add(folder.lower())
    return Message(
        message_id=short_id(message_id),
        thread_id=short_id(thread_id),
        in_reply_to=short_id(in_reply_to) if in_reply_to else None,
        sender=sender,
        sender_address=address.lower(),
        to=to,
        cc=cc,
        subject=subject,
        body_text=body_text,
        body_html=body_html,
        sent_at=sent_at,
        headers=kept,
        in_sent_folder=bool(places & SENT_FOLDERS),
        unsent=bool(places & UNSENT_FOLDERS),
    )


# ---- pieces that other importers share -------------------------------------------------------------


def canonical_address(address: str) -> str:
    """Return the form in which two spellings of one mailbox are equal.

    Lower case; for Gmail also without dots and +tag, which Gmail ignores (others may not).
    """
    local, _, domain = address.strip().lower().rpartition("@")
    if domain in ("gmail.com", "googlemail.com"):
        return f"{local.split('+', 1)[0].replace('.', '')}@gmail.com"
    return f"{local}@{domain}" if local else domain


def parse_date(text: str) -> datetime | None:
    """Return the UTC moment of an RFC 5322 or ISO 8601 date, or None when there is no believable one.

    A date without an offset (or with -0000) is taken as UTC.
    """
    text = text.strip()
    if not text or len(text) > 200:
        return None
    try:
        moment = datetime.fromisoformat(text) if text[:4].isdigit() else parsedate_to_datetime(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return moment if EARLIEST <= moment <= datetime.now(UTC) + LATEST_AHEAD else None


def content_id(*fields: str) -> str:
    """Return a stable id for a message that has none: the digest of what does not change between exports."""
    digest = hashlib.sha256()
    for value in fields:
        # A thousand words at a time: all words of a body at once take ten times its memory.
        for number, words in enumerate(_WORDS.finditer(value)):
            digest.update(b" " if number else b"")
            digest.update(" ".join(words[0].split()).encode("utf-8", "replace"))
        digest.update(b"\0")
    return f"sha256-{digest.hexdigest()[:40]}"


def subject_thread(subject: str, people: list[str], message_id: str) -> str:
    """Return the conversation of mail without thread headers: same subject among the same people.

    A mail without a subject is a conversation of its own.
    """
    topic = " ".join(_REPEATED_PREFIXES.sub("", subject).lower().split())
    if not topic:
        return message_id
    everybody = ",".join(sorted({canonical_address(person) for person in people if person.strip()}))
    return f"subject-{hashlib.sha256(f'{topic}|{everybody}'.encode('utf-8', 'replace')).hexdigest()[:40]}"


def short_id(text: str) -> str:
    """Return `text` as an id that the index has room for."""
    text = storable(text)
    if len(text) <= MAX_ID_CHARS:
        return text
    return f"sha256-{hashlib.sha256(text.encode()).hexdigest()[:40]}"


def storable(text: str) -> str:
    """Return `text` without what PostgreSQL refuses: NUL and lone surrogates."""
    if "\0" in text:
        text = text.replace("\0", "")
    if not text.isascii() and _SURROGATES.search(text):
        text = _SURROGATES.sub("\ufffd", text)
    return text


def decode_text(data: bytes, charset: str | None) -> str:
    """Decode bytes whose declared `charset` may be missing, unknown or a lie. Never raises.

    Bytes that are valid UTF-8 beyond ASCII are UTF-8 whatever an 8-bit charset claims: by chance that happens
    in no real text. Otherwise the declared charset counts, then Windows-1252.
    """
    codec = _text_codec((charset or "").strip("\"' ").lower())
    if codec is None or codec in ("ascii", "utf-8", "cp1252") or codec.startswith("iso8859"):
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            pass
        if codec in (None, "ascii", "utf-8"):
            text = data.decode("utf-8", "replace")
            if _BEYOND_ASCII.search(text):
                return text  # UTF-8 that was cut or damaged in places
        # "iso-8859-1" is Windows-1252 in practice (WHATWG Encoding Standard, section 4.2).
        codec = "cp1252" if codec in (None, "ascii", "utf-8", "iso8859-1") else codec
    elif codec.startswith(("utf-16", "utf-32")) and b"\0" not in data:
        codec = "utf-8"  # as UTF-16 it would decode without an error, to Chinese
    try:
        return data.decode(codec)
    except (UnicodeError, ValueError):
        return data.decode("cp1252", "replace")


# ---- headers ---------------------------------------------------------------------------------------


def _split(raw: bytes, start: int, end: int) -> tuple[dict[str, bytes], int]:
    """Return the wanted headers (lower-case name → first value, unfolded) and where the body begins.

    The message is `raw[start:end]`: parts are places in the whole, since copies of a part within a part
    within a part would take many times the mail's memory.
    """
    if raw.startswith((b"\n", b"\r\n"), start, end):
        match = _LINE_ENDS.match(raw, start, end)
        return {}, match.end() if match and raw[start : start + 1] == b"\r" else start + 1
    blank = _HEADER_END.search(raw, start, end)
    block, body_start = (raw[start : blank.start()], blank.end()) if blank else (raw[start:end], end)
    headers: dict[str, bytes] = {}
    recognised = False
    for line in _UNFOLD.sub(b" ", block).split(b"\n") if len(block) < _LONG_BLOCK else _lines(block):
        field_name, colon, value = line.partition(b":")
        if not colon or not _FIELD_NAME.fullmatch(field_name):
            continue
        recognised = True
        name = field_name.rstrip(b" \t").decode("ascii").lower()
        if (name in _WANTED_HEADERS or name.startswith("list-")) and name not in headers:
            headers[name] = _shortened(name, value.strip())
    if recognised and not headers:
        headers["x-other"] = b""  # a part with other headers only is still a part
    return headers, body_start


def _lines(block: bytes) -> Iterator[bytes]:
    """Yield unfolded header lines one at a time, of a very long one its two ends."""
    for match in _FOLDED_LINE.finditer(block):
        line = match[0]
        if len(line) > 2 * MAX_HEADER_BYTES:
            line = line[:MAX_HEADER_BYTES] + b" " + line[-MAX_HEADER_BYTES:]
        yield _UNFOLD.sub(b" ", line)


def _shortened(name: str, value: bytes) -> bytes:
    if len(value) <= MAX_HEADER_BYTES:
        return value
    if name == "references":  # the first names the conversation, the last the message that is answered
        return value[: MAX_HEADER_BYTES // 2] + b" " + value[-MAX_HEADER_BYTES // 2 :]
    return value[:MAX_HEADER_BYTES]


def _raw_text(value: bytes) -> str:
    """Return a header's text as it stands, without decoding RFC 2047 words."""
    return storable(value.decode("ascii") if value.isascii() else decode_text(value, None))


def _text(value: bytes) -> str:
    """Return a header's text, RFC 2047 words decoded and blanks collapsed."""
    return _decode_words(_raw_text(value))


def _decode_words(text: str) -> str:
    if "=?" in text:
        try:
            pieces = decode_header(text)
        except (ValueError, HeaderParseError):  # broken base64 is either
            pieces = [(text, None)]
        text = "".join(
            piece if isinstance(piece, str) else decode_text(piece, charset) for piece, charset in pieces
        )
    return storable(" ".join(text.split()))


def _own_id(text: str) -> str:
    found = _MESSAGE_ID.search(text)
    return found[1] if found else "".join(text.split()).strip("<>")


def _first_address(text: str) -> tuple[str, str]:
    """Return (name, address) of the first mailbox in an address header; empty strings when there is none."""
    match = _PLAIN_ADDRESS.match(text)
    if match is not None:
        return (match[1] or "").strip(), match[2] or match[3]
    name, address = (_parse_addresses(text) or [("", "")])[0]
    if "@" not in address:  # the strict parser gives nothing for headers that are only slightly wrong
        found = _ANY_ADDRESS.search(text)
        return name, found[0] if found else ""
    return name, address


def _parse_addresses(text: str) -> list[tuple[str, str]]:
    try:
        return getaddresses([text])
    except (RecursionError, IndexError, ValueError):  # hundreds of open comments, a torn quoted string
        return []


def _addresses_in(text: str) -> list[str]:
    return _ANY_ADDRESS.findall(text)


def _recipients(value: bytes) -> str:
    """Return a recipient header as one column value; names with commas are quoted."""
    if not value:
        return ""
    text = _raw_text(value)[:MAX_RECIPIENTS_CHARS]
    if "=?" not in text:
        return storable(" ".join(text.split()))
    entries = []
    for name, address in _parse_addresses(text):
        decoded = _decode_words(name).replace('"', "")
        shown = f'"{decoded}"' if "," in decoded else decoded
        entries.append(f"{shown} <{address}>" if shown and address else shown or address)
    return join_addresses(entries) or _decode_words(text)


# ---- bodies ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Parts:
    plain: list[str] = field(default_factory=list)
    html: list[str] = field(default_factory=list)
    calendar: str | None = None
    seen: int = 0


def _walk(headers: dict[str, bytes], raw: bytes, start: int, end: int, parts: _Parts, depth: int) -> None:
    """Collect the text parts of the body `raw[start:end]`; attachments are stepped over undecoded."""
    parts.seen += 1
    if parts.seen > MAX_PARTS or depth > MAX_DEPTH:
        return
    kind, parameters = _content_type(headers.get("content-type", b"")[:_MAX_CONTENT_TYPE_BYTES])
    if kind.startswith("multipart/"):
        boundary = parameters.get("boundary", "")
        found_any = False
        delimiter = b"--" + boundary.encode("utf-8", "replace")
        for piece_start, piece_end in _pieces(raw, start, end, delimiter) if boundary else ():
            found_any = True
            inner, content_start = _split(raw, piece_start, piece_end)
            _walk(inner, raw, content_start, piece_end, parts, depth + 1)
            if parts.seen > MAX_PARTS:
                break
        if found_any:
            return
        kind = "text/plain"  # the boundary never comes: what is there is all there is
    if kind == "text/calendar" or kind == "application/ics":
        method = parameters.get("method", "")
        if not method:
            found = _CALENDAR_METHOD.search(_transfer_decode(raw[start : min(end, start + 8192)], headers))
            method = found[1].decode("ascii") if found else ""
        parts.calendar = parts.calendar or storable(method.upper()[:20]) or "NONE"
        return
    if kind not in ("text/plain", "text/html"):
        return  # also message/rfc822: a mail inside a mail is somebody else's words
    if headers.get("content-disposition", b"")[:10].lower() == b"attachment":
        return
    body = raw[start : min(end, start + MAX_BODY_BYTES)]
    text = decode_text(_transfer_decode(body, headers), parameters.get("charset"))
    text = storable(text.replace("\r\n", "\n").replace("\r", "\n"))
    (parts.html if kind == "text/html" else parts.plain).append(text)


@lru_cache(maxsize=512)  # one program writes the same few lines over and over
def _content_type(value: bytes) -> tuple[str, dict[str, str]]:
    """Return the lower-case type and the parameters that matter; text/plain when it is missing or broken."""
    if not value:
        return "text/plain", {}
    text = _raw_text(value)
    kind, _, rest = text.partition(";")
    kind = kind.strip().lower()
    if "/" not in kind:
        kind = "text/plain"
    if not rest:
        return kind, {}
    holder = StandardMessage()
    holder["content-type"] = storable(" ".join(text.split()))
    parameters: dict[str, str] = {}
    for name in ("charset", "boundary", "method"):
        found = holder.get_param(name)
        if isinstance(found, tuple):  # RFC 2231: charset, language, value
            found = found[2]
        if isinstance(found, str):
            parameters[name] = found
    return kind, parameters


def _pieces(raw: bytes, start: int, end: int, delimiter: bytes) -> Iterator[tuple[int, int]]:
    """Yield where each part between delimiter lines begins and ends; without a last one it is the end."""
    position = start if raw.startswith(delimiter, start, end) else _next_line(raw, start, end, delimiter)
    while position >= 0:
        line_end = raw.find(b"\n", position, end)
        after = position + len(delimiter)
        if raw.startswith(b"--", after, end) or line_end < 0:
            return
        following = _next_line(raw, line_end, end, delimiter)
        piece_start, piece_end = line_end + 1, following - 1 if following >= 0 else end
        if following >= 0 and piece_end > piece_start and raw[piece_end - 1 : piece_end] == b"\r":
            piece_end -= 1
        yield piece_start, max(piece_start, piece_end)
        position = following


def _next_line(raw: bytes, start: int, end: int, delimiter: bytes) -> int:
    """Return where the next line that is `delimiter` begins, or -1.

    Nested boundaries may be prefixes of each other, so what follows must be blank or "--".
    """
    position = start
    while (position := raw.find(b"\n" + delimiter, position, end)) >= 0:
        after = position + 1 + len(delimiter)
        following = raw[after : min(after + 2, end)]
        if following in (b"", b"--") or following[:1] in b"\r\n \t":
            return position + 1
        position += 1
    return -1


def _transfer_decode(body: bytes, headers: dict[str, bytes]) -> bytes:
    encoding = headers.get("content-transfer-encoding", b"").strip(b" \t\"'").lower()
    if encoding == b"base64":
        return _base64(body)
    if encoding == b"quoted-printable":
        return binascii.a2b_qp(body)
    return body


def _base64(body: bytes) -> bytes:
    """Decode base64 that may be cut off; foreign characters are skipped, as mail programs do."""
    try:
        return binascii.a2b_base64(body)
    except binascii.Error:
        letters = re.sub(rb"[^A-Za-z0-9+/]", b"", body)
        whole = letters[: len(letters) // 4 * 4]
        return binascii.a2b_base64(whole) if whole else body


def _join(texts: list[str]) -> str | None:
    return "\n\n".join(text.rstrip("\n") for text in texts) if len(texts) > 1 else texts[0] if texts else None


@lru_cache(maxsize=256)
def _text_codec(name: str) -> str | None:
    """Return Python's name of a charset for text, or None."""
    try:
        b"a".decode(name, "replace")  # a LookupError also for the codecs that are no charset, like "hex"
        codec = codecs.lookup(name).name
    except (LookupError, ValueError):
        return None
    return None if codec in _NOT_TEXT_CODECS else codec
