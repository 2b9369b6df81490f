"""The body as the author saw it: line ends, control characters, transfer-encoding and charset leftovers.

Every later position (`Cut.start`, `Cut.end`) counts characters of the text that `decode_body` returns.
"""

from __future__ import annotations

import re

from training.mail.html import looks_like_html, render_html

# No mail a person wrote comes near it (the longest own text that is trained on has 2,000 words, about
# 12,000 characters; the longest body of 11 real mailboxes 35,000); reading no further bounds the time any
# mail can take. Marked quotes are shortened first, so that own words below a longer one are read.
MAX_SCANNED_CHARS = 100_000
# What is searched for quotes to shorten: 0.3 s for two-character lines.
_MAX_READ_CHARS = 2_000_000
# Of a marked quote in a body that is too long, this many lines stay at either end: the attribution stands
# above, the context for training is cut to 12,000 characters anyway.
_QUOTE_EDGE_LINES = 200

_MAX_STUB_CHARS = 400
_STUB = re.compile(
    r"\s*(?:this (?:message|e-?mail) (?:is|was sent|contains)|your (?:e-?mail |mail )?(?:client|program|"
    r"reader)|please (?:view|use|enable|switch)|diese (?:nachricht|e-?mail)|ce (?:message|courriel)|"
    r"este (?:mensaje|correo))[^\n]{0,80}html",
    re.I,
)

_QUOTE_RUN = re.compile(r"(?:^[ \t]*+>[^\r\n]*+(?:\r\n?|\n|\Z))++", re.M)
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200c\u200e\u200f\u2060\ufeff\ufffd]"
)
_CONTROL_BYTES = bytes(code for code in range(128) if _CONTROL.match(chr(code)))
_ODD_SPACE = re.compile("[\u00a0\u2000-\u200a\u202f\u205f\u3000]")
# Each pattern begins with its "=" and looks back over it: the engine then skips to the next one.
# A rule of "=" ends no line softly: a true "=" is encoded itself.
_SOFT_BREAK = re.compile(r"=(?<!==)[ \t]{0,4}\n")
# RFC 2045 §6.7 encodes "=", what is not ASCII, and blanks at the end of a line. "x=20 and y=30" is a formula.
_QP_EVIDENCE = re.compile(
    r"=(?<!==)(?:20|09)?[ \t]{0,4}(?:\n|\Z)|=3D|=[CDE][0-9A-F]=[89AB][0-9A-F]"
    r"|=(?<=[A-Za-z]=)(?:9[1-7](?=[a-z ])|[C-F][0-9A-F](?=[a-z ,.!?\n]))"
)
_QP_BYTE = r"=(?:[0189A-F][0-9A-F]|3D|20|2E)"
_QP_BYTES = re.compile(rf"{_QP_BYTE}(?:{_QP_BYTE})*")
# A run that starts with what a UTF-8 lead byte and continues with what UTF-8 continuation bytes look like
# when they are read as Windows-1252.
_MOJIBAKE = re.compile(
    "[\u00c2-\u00f4][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122]{1,3}"
)
# Some archives put the rule that starts an attachment on the last line of the body, and cut it off there.
_GLUED_ATTACHMENT = re.compile(
    r"(?<=[^\s=;~_])[ \t]{0,4}(?=[=;~_][=;:.~_* -]{5,80}\s?ATTACH)|"
    r"(?<=[^\s=])[ \t]{0,4}(?=={6,80}+\s*+(?:ATTACH|A?T?T?A?C?\s*+\Z))"
)


def decode_body(body_text: str, body_html: str = "") -> str:
    """Return the plain text of a body, at most `MAX_SCANNED_CHARS` characters, lines ended by "\\n".

    The plain part wins; HTML is rendered only when there is no plain part, or when the plain part is HTML.
    Of a longer body the middle of marked quotes is left out first.
    """
    text = "" if body_html and _is_stub(body_text) else body_text
    if len(text) > MAX_SCANNED_CHARS:
        text = _shorten_quotes(text[:_MAX_READ_CHARS])[:MAX_SCANNED_CHARS]
    if looks_like_html(text):
        text = render_html(body_text)[:MAX_SCANNED_CHARS]
    elif body_html and not text.strip():
        text = render_html(body_html)[:MAX_SCANNED_CHARS]
    return normalise_text(text)


def _is_stub(text: str) -> bool:
    """Tell whether a plain part only says that there is an HTML part."""
    return len(text) <= _MAX_STUB_CHARS and _STUB.match(text) is not None


def _shorten_quotes(text: str) -> str:
    """Leave out the middle of every run of ">" lines that is longer than its two edges."""
    # Places, not lines: a million short lines as strings would take twenty times the body's memory.
    kept: list[str] = []
    position = 0
    for run in _QUOTE_RUN.finditer(text):
        start, end = run.span()
        if end - start <= 2 * _QUOTE_EDGE_LINES:  # a line has a mark at least
            continue
        line_end = "\n" if text.find("\n", start, end) >= 0 else "\r"
        if text.count(line_end, start, end) <= 2 * _QUOTE_EDGE_LINES:
            continue
        head, tail = start, end - 1
        for _ in range(_QUOTE_EDGE_LINES):
            head = text.find(line_end, head, end) + 1
            tail = text.rfind(line_end, start, tail)
        kept.append(text[position:head])
        position = tail + 1
    return "".join([*kept, text[position:]]) if kept else text


def normalise_text(text: str) -> str:
    """Return `text` with LF line ends, no control characters, and encoding leftovers decoded."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii():
        text = _mend_unicode(text)
    if "=" in text and _QP_EVIDENCE.search(text):
        text = _decode_quoted_printable(text)
    if _may_hold_control(text) and _CONTROL.search(text):
        text = _CONTROL.sub("", text)
    if "ATTACH" in text or "======" in text:
        text = _GLUED_ATTACHMENT.sub("\n", text)
    return text


def _may_hold_control(text: str) -> bool:
    """Tell by its bytes whether ASCII text holds control characters: a tenth of what searching it takes."""
    return not text.isascii() or len(text.encode().translate(None, _CONTROL_BYTES)) < len(text)


def _mend_unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        # Pairs of surrogates become the character they stand for, lone ones a mark that is removed below.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = text.replace("\u2028", "\n").replace("\u2029", "\n\n").replace("\x85", "\n")
    # Mojibake first: its continuation bytes may be no-break spaces or C1 controls.
    text = _MOJIBAKE.sub(_mend_mojibake, text)
    return _ODD_SPACE.sub(" ", text)


def _mend_mojibake(match: re.Match[str]) -> str:
    run = match.group()
    for end in range(len(run), 1, -1):
        head = run[:end]
        for charset in ("cp1252", "latin-1"):
            try:
                return head.encode(charset).decode("utf-8") + run[end:]
            except UnicodeError:
                continue
    return run


def _decode_quoted_printable(text: str) -> str:
    text = _SOFT_BREAK.sub("", text)
    return _QP_BYTES.sub(_decode_escapes, text)


def _decode_escapes(match: re.Match[str]) -> str:
    raw = bytes.fromhex(match.group().replace("=", ""))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")
