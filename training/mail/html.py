"""HTML bodies as plain text, with quoted blocks marked the way plain-text mail marks them.

A mail client that wraps the answered message in an element (Gmail's `gmail_quote`, `blockquote type=cite`,
Outlook's border div, `#appendonsend`, Thunderbird's `moz-cite-prefix`) says exactly whose words these are.
That knowledge becomes "> " prefixes and marker lines, so that `training.mail.quotes` stays the only place
that decides what is cut, and inline answers between two blockquotes survive.
"""

from __future__ import annotations

import re

from lxml import etree, html

# A screen of own words is far below this; libxml2 parses it in about 0.1 s.
MAX_HTML_CHARS = 500_000
# Lines, and characters, after which rendering stops: more is never read (see training/mail/decode.py).
_MAX_LINES = 20_000
_MAX_CHARS = 100_000

# Of one quoted block that many characters are rendered, so that own words below a huge one are still read; as
# context for training 12,000 are kept.
_MAX_QUOTED_CHARS = 20_000

QUOTE_MARKER = "-----Original Message-----"
SIGNATURE_MARKER = "--"
# Apple Mail writes a document before and after each attachment, and programs that join parts keep them all.
_MAX_DOCUMENTS = 20

_HTML_START = re.compile(r"\s{0,200}(?:<!doctype html|<html|<head|<body|<div|<p[ >]|<table|<meta)", re.I)
_INVISIBLE = frozenset({"script", "style", "head", "title", "meta", "link", "template", "object", "noscript"})
_BLOCKS = frozenset(
    [
        "p",
        "div",
        "tr",
        "table",
        "ul",
        "ol",
        "li",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "pre",
        "blockquote",
        "section",
        "article",
        "header",
        "footer",
        "center",
        "main",
        "aside",
        "nav",
        "figure",
        "legend",
        "dl",
        "dt",
        "dd",
        "address",
        "form",
        "hr",
    ]
)
_PARAGRAPHS = frozenset({"p", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "table", "pre"})
# Quote containers whose whole content was written by somebody else.
_QUOTED_CLASSES = (
    "gmail_quote",
    "yahoo_quoted",
    "protonmail_quote",
    "tutanota_quote",
    "zmail_extra",
    "moz-cite",
)
# What a client puts in from its settings: Gmail, Proton, Spark, Thunderbird, Outlook on the web.
_SIGNATURE_CLASSES = ("gmail_signature", "protonmail_signature_block", "moz-signature", "x_gmail_signature")
_SIGNATURE_IDS = frozenset({"signature", "x_signature", "ms-outlook-mobile-signature"})
_SIGNATURE_NAMES = frozenset({"messagesignaturesection"})
# From these elements on, the rest of the document is the answered message.
_REST_IS_QUOTE_IDS = frozenset({"appendonsend", "divrplyfwdmsg", "stopspelling", "x_divrplyfwdmsg"})
_REST_IS_QUOTE_CLASSES = ("outlookmessageheader",)
# Outlook: <div style="border:none;border-top:solid #B5C4DF 1.0pt;padding:3.0pt 0in 0in 0in">
_OUTLOOK_BORDER = re.compile(
    r"border-top:\s?(?:solid\s#[0-9a-f]{6}\s1(?:\.0)?pt|1(?:\.0)?pt\ssolid\s#[0-9a-f]{6})", re.I
)
_HIDDEN = re.compile(
    r"display:\s?none|visibility:\s?hidden|mso-hide:\s?all|font-size:\s?0(?:px|pt)?\s?(?:;|$)", re.I
)
_MAX_EMOJI_CHARS = 8
_END_OF_DOCUMENT = re.compile(r"</html\s{0,20}>", re.I)
_SPACES = re.compile(r"[ \t\r\n\f]+")
_INVALID = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def looks_like_html(text: str) -> bool:
    """Tell whether a body that claims to be plain text is an HTML document."""
    return text.lstrip()[:1] == "<" and _HTML_START.match(text) is not None


def render_html(source: str) -> str:
    """Return the text of an HTML body; never raises on damaged HTML, one pass over the tree.

    Quoted blocks come out with "> " before every line; what follows Outlook's reply divider comes out
    after a `-----Original Message-----` line.
    """
    cleaned = _INVALID.sub("", source[:MAX_HTML_CHARS])
    if not cleaned.strip():
        return ""
    renderer = _Renderer()
    for document in _END_OF_DOCUMENT.split(cleaned, _MAX_DOCUMENTS):
        # Parsing bytes: lxml refuses str input that carries an encoding declaration.
        parser = html.HTMLParser(encoding="utf-8", recover=True, remove_comments=True, remove_pis=True)
        try:
            renderer.render(html.document_fromstring(document.encode("utf-8"), parser=parser))
        except (etree.ParserError, etree.XMLSyntaxError):
            continue  # nothing but blanks, or nothing that can be read
    return renderer.text


class _Renderer:
    """Lines of text under construction; `depth` is how many quote blocks enclose the current position."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.parts: list[str] = []
        self.depth = 0
        self.rest_is_quote = False
        self.size = 0
        self.quoted = 0
        self.mark = ""
        """What the next line of text begins with: the mark of a list's item, which may open with a block."""
        self.numbers: dict[etree._Element, int] = {}

    @property
    def text(self) -> str:
        return "\n".join(self.lines).strip("\n")

    def render(self, root: etree._Element) -> None:
        """Add the lines of one document."""
        skipped: etree._Element | None = None
        preformatted = 0
        # An explicit walk: hostile mail nests deeper than Python recurses.
        for event, element in etree.iterwalk(root, events=("start", "end")):
            if self.size > _MAX_CHARS or len(self.lines) > _MAX_LINES:
                break
            tag = element.tag if isinstance(element.tag, str) else ""
            if skipped is not None:
                if event == "end" and element is skipped:
                    skipped = None
                    self._text(element.tail, preformatted > 0)
                continue
            if event == "start":
                if tag in _INVISIBLE or not tag or self._is_hidden(element):
                    skipped = element
                    continue
                if tag == "br":
                    self._break()
                elif tag == "img":
                    self._picture(element)
                elif tag in _BLOCKS:
                    self._open_block(tag)
                preformatted += tag == "pre"
                if self._starts_rest(element):
                    self._marker()
                if not self.depth and self._is_signature(element):
                    self._break_if_text()
                    self.lines.append(SIGNATURE_MARKER)
                if self._is_quote(element, tag):
                    self._break_if_text()
                    self.depth += 1
                if tag == "li":
                    self._item(element)
                self._text(element.text, preformatted > 0)
                continue
            if self._is_quote(element, tag):
                self._break_if_text()
                self.depth -= 1
                if not self.depth:
                    self.quoted = 0
            preformatted -= tag == "pre"
            if tag in _BLOCKS:
                self._break_if_text()
                if tag == "li":
                    self.mark = ""
                if tag in _PARAGRAPHS:
                    self._blank()
            elif tag in ("td", "th"):
                self.parts.append(" ")
            self._text(element.tail, preformatted > 0)
        self._break_if_text()
        self.depth = 0

    def _open_block(self, tag: str) -> None:
        self._break_if_text()
        if tag in _PARAGRAPHS:
            self._blank()
        if tag == "hr":
            self._blank()

    def _item(self, element: etree._Element) -> None:
        parent = element.getparent()
        if parent is None or parent.tag != "ol":
            self.mark = "- "
            return
        self.numbers[parent] = self.numbers.get(parent, 0) + 1
        self.mark = f"{self.numbers[parent]}. "

    def _picture(self, element: etree._Element) -> None:
        """Gmail and others send an emoji as a picture: the sign itself is the alternative text."""
        sign = element.get("alt", "")
        if sign and len(sign) <= _MAX_EMOJI_CHARS and not any(char.isascii() for char in sign):
            self.parts.append(sign)

    def _text(self, text: str | None, preformatted: bool) -> None:
        if not text:
            return
        if self.depth:
            self.quoted += len(text)
            if self.quoted > _MAX_QUOTED_CHARS:
                return
        self.size += len(text)
        if preformatted:
            first, *others = text.split("\n")
            self.parts.append(first)
            for line in others:
                self._break()
                self.parts.append(line)
        else:
            self.parts.append(_SPACES.sub(" ", text))

    def _break(self) -> None:
        line = "".join(self.parts).strip()
        self.parts.clear()
        if line and self.mark:
            line, self.mark = f"{self.mark}{line}", ""
        if self.quoted > _MAX_QUOTED_CHARS and not line:
            return
        self.lines.append("> " * min(self.depth, 5) + line if self.depth else line)

    def _break_if_text(self) -> None:
        if any(not part.isspace() for part in self.parts):
            self._break()
        else:
            self.parts.clear()

    def _blank(self) -> None:
        if self.lines and not self.mark and self.lines[-1].strip("> "):
            self.lines.append("> " * min(self.depth, 5) if self.depth else "")

    def _marker(self) -> None:
        if not self.rest_is_quote and not self.depth:
            self.rest_is_quote = True
            self._break_if_text()
            self._blank()
            self.lines += [QUOTE_MARKER, ""]

    @staticmethod
    def _is_quote(element: etree._Element, tag: str) -> bool:
        if tag == "blockquote":
            css = element.get("class", "")
            return (
                "cite" in element.get("type", "").lower() or "gmail_quote" in css or bool(element.get("cite"))
            )
        if tag in ("div", "section"):
            # Gmail's outer div also holds the attribution, inline answers and forwards; there only its
            # blockquotes are quotes, and `training.mail.quotes` reads the rest.
            css = element.get("class", "")
            return any(name in css for name in _QUOTED_CLASSES if name not in ("gmail_quote", "moz-cite"))
        return False

    @staticmethod
    def _is_hidden(element: etree._Element) -> bool:
        style = element.get("style")
        return element.get("hidden") is not None or bool(style and _HIDDEN.search(style[:400]))

    @staticmethod
    def _is_signature(element: etree._Element) -> bool:
        css = element.get("class", "")
        return (
            any(name in css for name in _SIGNATURE_CLASSES)
            or element.get("id", "").lower() in _SIGNATURE_IDS
            or element.get("name", "").lower() in _SIGNATURE_NAMES
        )

    @staticmethod
    def _starts_rest(element: etree._Element) -> bool:
        if element.get("id", "").lower() in _REST_IS_QUOTE_IDS:
            return True
        if any(name in element.get("class", "").lower() for name in _REST_IS_QUOTE_CLASSES):
            return True
        style = element.get("style")
        return bool(style and "border-top" in style.lower() and _OUTLOOK_BORDER.search(style[:400]))
