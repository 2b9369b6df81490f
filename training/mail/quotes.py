"""Whose words are these: the author's own lines, and the message they answer.

`split_quotes` walks the lines once, top to bottom, and knows these layouts:

- ">" lines, nested or not, before, after and between own lines (inline answers);
- attribution lines ("On … wrote:", wrapped over up to four lines, in 14 languages) above marked, indented or
  unmarked quotes;
- separator lines (`-----Original Message-----`, `Forwarded by …`, "Begin forwarded message:") in 9 languages;
- header blocks: Outlook (From/Sent/To/Subject), Lotus Notes (name, date, To/cc/Subject), White House ARMS
  ("Record Type:", OCR damage in dates and labels).

Libraries, measured on fossum-d (1,025 mails of 1.8 KB): quotequail 0.5.4 takes 0.4 ms a mail, knows no Lotus
block, and needs 8 s for 120,000 lines of " wrote:"; mail-parser-reply 1.36 takes 1.0 ms with seven languages
(0.3 ms with English only) and keeps no inline answers. Both are too slow to see every mail. quotequail is
asked about the few mails whose layout is ambiguous, on a bounded text (`is_confirmed`).
mail-parser-reply has no say: on exactly those layouts (inline, bottom-posted) it is the weaker one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from enum import StrEnum
from typing import NamedTuple

import quotequail


class QuoteKind(StrEnum):
    REPLY = "reply"
    FORWARD = "forward"


@dataclass(frozen=True, slots=True)
class Cut:
    """Characters `start` to `end` of the decoded body are not the author's own words, because of `reason`."""

    reason: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, order=True)
class Hole:
    """Not the author's own words, from one (line, column) to another, within lines that are."""

    start: tuple[int, int]
    end: tuple[int, int]
    reason: str
    mark: str = ""
    """What is left in its place."""


@dataclass(slots=True)
class QuoteSplit:
    """Which lines are the author's own. Lines are numbered from 0 in `lines`."""

    lines: list[str]
    own: list[int]
    """Own lines in order, blank ones included; a gap in the numbers is a cut."""
    cuts: list[tuple[str, int, int]] = field(default_factory=list)
    """(reason, first line, line after the last)."""
    holes: list[Hole] = field(default_factory=list)
    """Parts of own lines that are not the author's; they do not overlap."""
    kind: QuoteKind | None = None
    quoted: list[str] = field(default_factory=list)
    """Content of ">" lines, one level removed."""
    body_after: int | None = None
    """The first line of a quoted message that nothing marks."""
    ambiguous: bool = False
    """The layout allows more than one reading: ask `is_confirmed`."""
    inline: bool = False
    """Own lines stand below a marked quote: ask `is_confirmed`."""
    hopeless: bool = False
    """There is no telling where the quote ends."""

    @property
    def answered_text(self) -> str:
        """Return the most recent quoted message without headers and without what it quotes itself."""
        return "" if self.kind is None else _answered_text(self.lines, self.quoted, self.body_after)


# The quoted message is context for training, cut to a token limit later; more is not kept.
MAX_ANSWERED_CHARS = 12_000
# Lines a header block may span: "To:" lists of two hundred people exist.
_MAX_HEADER_LINES = 500
# A line that a client wrapped is at least that long.
_MIN_WRAPPED = 60
# quotequail is quadratic in places; ambiguous mail is short or not worth keeping.
_MAX_SECOND_OPINION_CHARS = 20_000

_LABELS = {
    "from": "From|Von|De|Da|Van|Från|Fra|Od|Lähettäjä|Expéditeur|Remitente|Mittente|Afzender|Avsändare|От",
    "sent": "Sent|Date|Date Sent|Sent on|Gesendet|Gesendet am|Datum|Envoyé|Envoyé le|Enviado|Enviado el|"
    "Enviado em|Enviada|Enviada em|Fecha|Data|Inviato|Inviato il|Verzonden|Skickat|Sendt|Dato|Wysłano|"
    "Odesláno|Lähetetty|Дата",
    "to": "To|T0|An|À|A|Para|Aan|Till|Til|Do|Komu|Vastaanottaja|Pour|Per|Destinataire|Destinatario|Кому",
    "cc": "Cc|c.c.|ce|Kopie|Copie|Copia|Kopia|Kopi|CCO",
    "subject": "Subject|Subj ect|SUbject|Betreff|Objet|Sujet|Asunto|Oggetto|Onderwerp|Assunto|Ämne|Emne|"
    "Temat|"
    "Předmět|Aihe|Тема",
    "other": "Record Type|Importance|Wichtigkeit|Importancia|Prioridad|Sent by|Please respond to|Reply-To|"
    "Bcc|"
    "Attachments|Anlagen|Sensitivity|Message-ID|Delivered-To",
}
_KIND_OF_LABEL = {word.lower(): kind for kind, words in _LABELS.items() for word in words.split("|")}
_LABEL_END = re.compile("[:：;]")
# The longest label, its mark of bold type and its colon.
_MAX_LABEL = 32
_MAX_LABEL_GAP = 3
_LABEL_FIRST = frozenset("*fvdlersgitaàápkcovbäöoотдк" + "FVDLERSGITAÀÁPKCOVBÄÖOОТДКwWmM")

_FORWARD_WORDS = (
    r"Forwarded (?:by|message|mail)|Fwd|Weitergeleitet(?:e Nachricht|e E-Mail| von)|"
    r"M(?:essage|ail) transféré|Transféré par|Message réexpédié|Mensaje reenviado|Reenviado por|"
    r"Messaggio inoltrato|Inoltrato da|Doorgestuurd(?: bericht| door)|Doorgezonden bericht|"
    r"Mensagem (?:re)?encaminhada|Encaminhado por|Vidarebefordrat(?: meddelande| av)|Videresendt"
)
_REPLY_WORDS = (
    r"Original (?:Message|Appointment)|Original e-?mail|Ursprüngliche (?:Nachricht|E-Mail|Mail)|"
    r"Originalnachricht|Original-?Nachricht|Message d['’]origine|M(?:essage|ail) original|Courriel original|"
    r"Mensaje original|Messaggio originale|Oorspronkelijk bericht|Origineel bericht|Mensagem original|"
    r"Originalmeddelande|Ursprungligt meddelande|Opprinnelig melding|Oprindelig meddelelse|"
    r"Reply (?:Separator|Message)|"
    r"Oorspronkelijke bericht|Wiadomość oryginalna|Původní zpráva|Исходное сообщение|Messaggio Originale"
)
_SEPARATOR = re.compile(
    r"[-_=~*‐‑–—.#', ]{2,80}\s?(?:(?P<forward>" + _FORWARD_WORDS + r")|(?:" + _REPLY_WORDS + r"))\b", re.I
)
# Scanned and mistyped markers ("-----Orginal Message-----"): two words between dashes that are nearly these.
_NEARLY_MARKER = re.compile(r"[-_=~*–—.]{2,80}\s?([\w'~]{3,12}\s?[\w'~]{2,10})\s?(?:[-_=~*–—.]{2}|[A-Z]|$)")
_MARKERS = {
    "original message": QuoteKind.REPLY,
    "original appointment": QuoteKind.REPLY,
    "forwarded message": QuoteKind.FORWARD,
    "forwarded by": QuoteKind.FORWARD,
}
_MARKER_LIKENESS = 0.82
# What is left of Lotus' "Forwarded by <name>/<unit>/<company> on <date>" when a scanner misread the words.
_NOTES_FORWARD = re.compile(
    r"/[A-Z][\w&]{1,12}(?:/\w{2,12})?\s?(?:@ ?\w+\s?)?\son\s[\dOSIl]{1,2}/[\dOSIl]{1,2}/[\dOSIl]{2,4}\b"
)
_BARE_FORWARD = re.compile(
    r"(?:Begin forwarded message|Anfang der weitergeleiteten (?:E[-‑]Mail|Nachricht)|Début du message "
    r"(?:réexpédié|transféré)|Inicio del mensaje reenviado|Inizio messaggio inoltrato|"
    r"Begin doorgestuurd bericht|"
    r"Início da mensagem (?:encaminhada|reencaminhada)|Vidarebefordrat brev)\s?:$"
    r"|Forwarded by .{1,100} on [\dOSIl]{1,2}/",
    re.I,
)
_DASHES = frozenset("-_=~*‐‑–—.#'")
# BlackBerry writes the marker without dashes, above a header block.
_BARE_MARKER = re.compile(rf"(?:{_FORWARD_WORDS}|{_REPLY_WORDS})", re.I)
_MAX_BARE_MARKER = 40

_VERBS = (
    r"wrote|writes|wrote the following|schrieb|schreibt|geschrieben|a écrit|a ecrit|écrit|escribió|escribio|"
    r"ha scritto|scrive|schreef|het volgende geschreven|escreveu|skrev|skrev följande|kirjoitti|napisał\(a\)|"
    r"napisał|napisała|napsal\(a\)|napsal|написал|написал\(а\)|пишет|írta|şunu yazdı|şunları yazdı|a scris|"
    r"έγραψε|schriebst du|schrieben Sie|hast du geschrieben|haben Sie geschrieben"
)
_ENDS_WITH_VERB = re.compile(
    r"(?:\b(?:" + _VERBS + r"|said)(?!\w)|のメール|写道|작성)(?:\s\((?:[^()]|\(s\)){1,60}\))?\s?[:：]$", re.I
)
# German and its neighbours put the name after the verb: "Am … schrieb Bob Lee <bob@x.com>:"
_VERB_THEN_NAME = re.compile(
    r"\b(?:schrieb|schreef|skrev|napisał\(?a?\)?|napsal\(?a?\)?)\s[\"'<\[]?(?:[A-ZÀ-Ý<\"']|\S{1,64}@).{0,200}[:：]$"
)
# Telephones, Notes and older programs put the name first and the date last: "Bob Lee <bob@x.com> schrieb am
# Di., 5. März 2024, 10:12:"
_BEFORE_DATE = r"(?:on|am|den|le|sur|el|il|in data|op|no dia|em|den)"
_VERB_THEN_DATE = re.compile(
    r"\b(?:wrote|schrieb|écrit|escribió|scritto|schreef|escreveu|skrev)\s"
    rf"{_BEFORE_DATE}\s(?P<date>.{{4,80}}?)\s?[:：]$"
)
_CLOCK = re.compile(r"\d{1,2}[:.h]\d{2}")
# Tuta names no verb: "05.03.2024, 10:12 von bob@x.com:"
_DATE_BY_ADDRESS = re.compile(
    r".{6,40}\d{1,2}[:.]\d{2}.{0,12}\s(?:by|von|par|por|da|de|van|av|af)\s<?\S{1,64}@\S{1,190}[:：]$"
)
# Horde and others name neither verb nor date: "Zitat von Bob Lee <bob@x.com>:"
_QUOTING = re.compile(
    r"(?:Quoting|Zitat von|Selon|Mensaje citado por|Citando a?|Citazione da|Citat|Cytowanie)\s.{2,160}[:：]$"
)
# Zoho rules it off: "---- On Tue, 05 Mar 2024 10:12:33 +0100 Bob Lee <bob@x.com> wrote ----"
_RULED = re.compile(
    rf"[-=]{{2,10}}\s?(?:On|Am|Le|El|Il|Op|Em|Den)\s.{{10,300}}\b(?:{_VERBS})\s?[-=]{{2,10}}$"
)
# GroupWise: ">>> Bob Lee <bob@x.com> 05.03.2024 10:12 >>>" above the bare text; also with "in Nachricht <…>:"
_GROUPWISE = re.compile(
    r">>>\s(?!>).{3,300}?(?:\d{1,2}[:.]\d{2}(?:\s?[AP]M)?\s?>{1,3}"
    r"|\sin (?:Nachricht|message|messaggio|mensaje|bericht)\b.{0,200}[:：]?)$"
)
_NAME_THEN_VERB = re.compile(r"(?:[A-ZÀ-Ý][\w.'’-]{0,40}|[>)\"\]]),?\s(?:" + _VERBS + r")\s?[:：]$")
_DATE_LEAD = re.compile(
    r"(?:-{1,4}\s?)?(?:(?:On|Am|Le|El|Il|Op|Em|No dia|Den|Vid|På|Dne|Dnia|W dniu|At|In|Pe|Στις|Mon|Tue|Wed|"
    r"Thu|Fri|Sat|Sun|"
    r"Quoting|Citando|Zitat von)(?!\w)|\d{1,4}[./年-])"
)
_NAME_LEAD = re.compile(r"(?:-{1,4}\s?)?(?:[\"'<\[]?[A-ZÀ-Ý]|\d{1,2}\.? [\w.]|[\"'<\[]|\S{1,64}@\S)")
_ADDRESS = re.compile(r"[\w.+'-]{1,64}@[\w-]{1,63}\.[\w.-]{2,}")
_TIME_OR_YEAR = re.compile(r"\b\d{1,2}[:.h]\d{2}\b|\b(?:19|20)\d\d\b|\b\d{1,2}[/.]\d{1,2}[/.]\d{2,4}\b|\d年")
_FIRST_PERSON = re.compile(
    r"(?<![\w.@-])(?:I|we|ich|wir|je|j['’]ai|nous|yo|io|ik|wij|eu|jag|vi|she|he|they|er|sie|who|it)\s+"
    rf"(?:also |just |then |once |ai |have |had |habe )?(?:{_VERBS}|said)"
    rf"(?:\s{_BEFORE_DATE}\s.{{4,80}})?\s?:$",
    re.I,
)
# Digits as OCR reads them: 0 as O, 5 as S, 1 as I or l.
_DATE = re.compile(
    r"(?<!\w)[\dOSIl]{1,2}\s?[/.]\s?[\dOSIl]{1,2}\s?[/.]\s?[\dOSIl]{2,4},?\s{1,4}[\dOSIl]{1,2}[:.][\dOSIl]{2}"
    r"|\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d",
)
_DATE_WORDS = ("date", "datum", "data", "fecha", "dato", "дата")
# What the header of a mail holds: an address, a Notes name, bold labels, a date with its time.
_MAIL_HEADER = re.compile(rf"[@/<]|^\s*\*|{_DATE.pattern}")
_MAX_ONE_LINE = 4_000
_INNER_LABEL = re.compile(
    r"\s(" + "|".join(re.escape(word) for words in _LABELS.values() for word in words.split("|")) + r")\s?:\s"
)
_ONE_LINE_HEADER = re.compile(r"(?:\d\s*(?:[AP]M)?)\s+To:\s.{0,2000}?\sSubject:", re.I)
_AM_PM = re.compile(r"\b[AP]M\b", re.I)
_RESPOND = re.compile(r"(?:Please respond to|Sent by)\b", re.I)
# What the wire services of the ARMS archive put above an article: "Date: 04/02/98 Time: 18:04".
_WIRE = re.compile(r"Date:\s{0,3}[\dOSIl/]{6,10}\s{1,3}Time:", re.I)
_NAME_TOKEN = re.compile(
    r"[\"'(<\[]?(?:[A-ZÀ-ÝŁŠŽ0-9&][\w.,'’`/()-]*|@\S*|\S+@\S*|\S+/\S*|von|van|de|der|den|da|la|le|di|del|"
    r"do|dos|das|e|y|bin|al)[\"')>\],;]*$"
)


def split_quotes(text: str, *, subject: str = "") -> QuoteSplit:
    """Separate own lines from quoted ones in a decoded body. Linear in the length of `text`."""
    lines = text.split("\n")
    split = QuoteSplit(lines, [])
    own = split.own
    quoted = split.quoted
    count = len(lines)
    i = 0
    while i < count:
        line = lines[i].strip()
        if not line:
            own.append(i)
            i += 1
            continue
        first = line[0]

        if first == ">":
            if line.startswith(">From ") and not own_has_words(lines, own) and not quoted:
                own.append(i)  # mbox escapes a line of the author's that begins with "From "
                i += 1
                continue
            if line.startswith(">>> ") and _is_groupwise(lines, i):
                split.cuts.append(("reply", i, count))
                split.kind = split.kind or QuoteKind.REPLY
                split.body_after = i + 1
                split.hopeless |= not own_has_words(lines, own)
                break
            end, unsure = _quoted_run(lines, i, quoted)
            if own and own[-1] == i - 1 and _runs_into_quote(lines, own):
                own.pop()
                i -= 1
            split.cuts.append(("quote", i, end))
            split.ambiguous |= unsure
            split.kind = split.kind or QuoteKind.REPLY
            i = end
            continue

        hit = _separator_or_header(lines, i, line, first, subject)
        if hit is not None:
            start, body, kind = hit
            while own and own[-1] >= start:
                own.pop()
            if kind is None:
                kind = QuoteKind.FORWARD if _is_forward_subject(subject) else QuoteKind.REPLY
            split.kind = split.kind or kind
            following = _next_text(lines, body)
            bottom_posted = (
                kind is QuoteKind.REPLY
                and following is not None
                and lines[following].lstrip().startswith(">")
                and not own_has_words(lines, own)
            )
            if bottom_posted:
                split.cuts.append(("header", start, body))
                split.ambiguous = True
                i = body
                continue
            split.cuts.append((kind.value, start, count))
            split.body_after = body if split.body_after is None else split.body_after
            break

        if line[-1] in ":：":
            lead = _attribution_start(lines, i)
            if lead is not None:
                while own and own[-1] >= lead:
                    own.pop()
                split.cuts.append(("attribution", lead, i + 1))
                split.kind = split.kind or QuoteKind.REPLY
                following = _next_text(lines, i + 1)
                if following is None or lines[following].lstrip().startswith(">"):
                    i += 1
                    continue
                if _indented(lines[following]) and not _indented(lines[lead]):
                    i = _indented_run(lines, following, quoted)
                    split.cuts.append(("quote", following, i))
                    continue
                # The quote is not marked. Below own words it is the rest of the mail; with nothing above,
                # the own words are somewhere below and nobody can say where they start.
                if not own_has_words(lines, own):
                    split.hopeless = True
                split.cuts.append(("reply", i + 1, count))
                split.body_after = i + 1
                break

        own.append(i)
        split.inline |= bool(split.cuts)
        i += 1

    return split


def own_has_words(lines: Sequence[str], own: Sequence[int]) -> bool:
    """Tell whether any own line holds a letter or a digit."""
    return any(any(map(str.isalnum, lines[index])) for index in reversed(own))


def _next_text(lines: Sequence[str], start: int) -> int | None:
    for index in range(start, len(lines)):
        if lines[index] and not lines[index].isspace():
            return index
    return None


def _is_forward_subject(subject: str) -> bool:
    return re.match(r"\s{0,20}(?:fwd?|wg|tr|rv|enc|doorst|vb|i)\s?:", subject, re.I) is not None


# ---- marked quotes ---------------------------------------------------------------------------------


def _quoted_run(lines: Sequence[str], start: int, quoted: list[str]) -> tuple[int, bool]:
    """Return the line after the run of ">" lines, and whether an unmarked line in it is of unsure origin.

    A client that wraps an already quoted line leaves its last words on a line of their own without ">".
    Such an orphan stands directly below a full quoted line and directly above the next quoted one.
    """
    unsure = False
    index = start
    count = len(lines)
    while index < count:
        line = lines[index].strip()
        if line.startswith(">"):
            content = line[1:]
            quoted.append(content[1:] if content.startswith(" ") else content)
            index += 1
            continue
        if not line or index + 1 >= count or not lines[index + 1].lstrip().startswith(">"):
            break
        above = lines[index - 1].rstrip()
        if len(above) < _MIN_WRAPPED or len(line) > 50 or not above.lstrip().startswith(">"):
            break
        if above[-1] in ".?!:" and not line[0].islower():
            break  # a short answer below a finished question
        unsure |= not line[0].islower()
        quoted.append(line)
        index += 1
    return index, unsure


def _is_groupwise(lines: Sequence[str], index: int) -> bool:
    """Tell whether a ">>>" line is GroupWise's header of a message that nothing marks."""
    above = lines[index - 1].lstrip() if index else ""
    following = _next_text(lines, index + 1)
    return (
        not above.startswith(">")
        and following is not None
        and not lines[following].lstrip().startswith(">")
        and _GROUPWISE.match(lines[index].strip()) is not None
    )


def _runs_into_quote(lines: Sequence[str], own: Sequence[int]) -> bool:
    """Tell whether the last own line is the first of the quote below it: a client wrapped that line.

    It is as long as a client makes lines, ends within a sentence, and is all that stands above the quote.
    """
    line = lines[own[-1]].strip()
    return len(line) >= _MIN_WRAPPED and line[-1] not in ".?!:;,)…" and not own_has_words(lines, own[:-1])


def _indented(line: str) -> bool:
    return line.startswith(("  ", "\t"))


def _indented_run(lines: Sequence[str], start: int, quoted: list[str]) -> int:
    """Return the line after a quote that is marked by indentation alone; blank lines belong to it."""
    end = start
    for index in range(start, len(lines)):
        line = lines[index]
        if not line or line.isspace():
            continue
        if not _indented(line):
            break
        quoted.append(line.strip())
        end = index + 1
    return end


# ---- attribution lines -----------------------------------------------------------------------------


def _attribution_start(lines: Sequence[str], end: int) -> int | None:
    """Return the first line of the attribution that ends with the ":" of line `end`, or None.

    "On Monday the committee met and I wrote:" is a sentence. An attribution ends (or, in German and its
    neighbours, goes on) with who wrote, and also names an address or a date, or stands directly above ">".
    """
    following = _next_text(lines, end + 1)
    marked = following is not None and following - end <= 3 and lines[following].lstrip().startswith(">")
    joined = ""
    found: int | None = None
    for start in range(end, max(-1, end - 4), -1):
        line = lines[start].strip()
        if not line or line[0] == ">":
            break
        joined = f"{line} {joined}".rstrip()
        if len(joined) > 500 or _FIRST_PERSON.search(joined):
            break
        if _DATE_LEAD.match(line):
            if _is_attribution(joined, marked):
                return start
        elif (
            (found is None or (start == found - 1 and _is_end_of_name(lines[found].strip(), line)))
            and _NAME_LEAD.match(line)
            and _is_attribution(joined, marked)
        ):
            found = start  # "Bob Lee <bob@x.com> wrote:" – unless a line above begins with the date
    return found


def _is_end_of_name(line: str, above: str) -> bool:
    """Tell whether a client wrapped a long name: the line above holds its beginning and nothing else."""
    first = line.split(maxsplit=1)[0]
    return (line[0] == "<" or len(above) + len(first) >= _MIN_WRAPPED) and _looks_like_name(above)


def _is_attribution(joined: str, marked: bool) -> bool:
    address = _ADDRESS.search(joined) is not None
    dated = _TIME_OR_YEAR.search(joined) is not None
    if _ENDS_WITH_VERB.search(joined):
        return (
            address
            or marked
            # "On 12 March 2026 Mr Sutton wrote:" is a sentence; programs tell the time of day.
            or (
                dated
                and len(joined) <= 160
                and _CLOCK.search(joined) is not None
                and _NAME_THEN_VERB.search(joined) is not None
            )
        )
    if _VERB_THEN_NAME.search(joined):
        return address or marked or (dated and _CLOCK.search(joined) is not None)
    if date := _VERB_THEN_DATE.search(joined):
        return address or marked or _CLOCK.search(date["date"]) is not None
    if (marked and _QUOTING.match(joined)) or _DATE_BY_ADDRESS.match(joined):
        return True
    # "2026/3/3 10:12 Bob Lee <bob@x.com>:" has no verb at all.
    return address and dated and (marked or joined.endswith((">:", ">：")))


# ---- separators and header blocks ------------------------------------------------------------------


def _separator_or_header(
    lines: Sequence[str], index: int, line: str, first: str, subject: str
) -> tuple[int, int, QuoteKind | None] | None:
    """Return (first line of the marker, first line of the quoted body, kind) when one starts at `index`.

    The first line may lie above `index`: Lotus puts name and date over the labels.
    """
    if first in _DASHES or first.isspace():
        found = _SEPARATOR.match(line)
        if found:
            kind = QuoteKind.FORWARD if found["forward"] else None
            return index, _body_after_separator(lines, index), kind
        nearly = _nearly_marker(line)
        if nearly is not None:
            kind = nearly if nearly is QuoteKind.FORWARD else None
            return index, _body_after_separator(lines, index), kind
        if line.endswith(("--", "==")) and _RULED.match(line):
            return index, index + 1, None
    elif first in "BFADIV" and _BARE_FORWARD.match(line):
        return index, _body_after_separator(lines, index), QuoteKind.FORWARD
    if "----" in line and "Forwarded by " in line:
        return index, _body_after_separator(lines, index), QuoteKind.FORWARD  # a stray mark before the rule
    if not first.isalpha() and "/" in line and " on " in line and _is_notes_forward(line[:200]):
        return index, _body_after_separator(lines, index), QuoteKind.FORWARD
    if first in _LABEL_FIRST:
        label = _label_of(line)
        if label and (label.kind != "other" or first in "rR"):
            # Of the other labels only "Record Type:" and "Reply-To:" ever come first.
            block = _header_block(lines, index)
            if block is not None:
                return _with_rule_above(lines, _lead_start(lines, index)), block, None
            if label.kind == "subject" and subject and _repeats_subject(line[label.end :], subject):
                return index, index + 1, QuoteKind.FORWARD  # the author deleted the rest of the header
            if _WIRE.match(line):
                return index, index + 1, QuoteKind.FORWARD
            if label.kind == "from" and len(line) < _MAX_ONE_LINE and _holds_header(line):
                return index, index + 1, None
    if len(line) < _MAX_ONE_LINE and " Subject:" in line and _ONE_LINE_HEADER.search(line):
        return index, index + 1, None
    return None


def _holds_header(line: str) -> bool:
    """Tell whether a line that begins with a sender goes on with the rest of a header."""
    kinds = {_KIND_OF_LABEL[found[1].lower()] for found in _INNER_LABEL.finditer(line)}
    return {"sent", "to", "subject"} <= kinds


class Label(NamedTuple):
    """The label that a line of a header begins with."""

    kind: str
    """A key of `_LABELS`."""
    end: int
    """The column after its colon."""


def _label_of(line: str) -> Label | None:
    """Return the label at the start of a line, "Subject :" or in bold "**From:**"; None for another line."""
    head = line[:_MAX_LABEL]
    if ":" not in head and ";" not in head and "：" not in head:
        return None
    colon = _LABEL_END.search(head)
    if colon is None:
        return None
    word = line[: colon.start()].strip("*")
    bare = word.rstrip(" \t")
    kind = _KIND_OF_LABEL.get(bare.lower()) if len(word) - len(bare) <= _MAX_LABEL_GAP else None
    return None if kind is None else Label(kind, colon.end())


def _nearly_marker(line: str) -> QuoteKind | None:
    """Return which marker a line of dashes is but for a letter or two; None for another line."""
    found = _NEARLY_MARKER.match(line)
    if not found:
        return None
    given = " ".join(found[1].lower().split())
    for marker, kind in _MARKERS.items():
        if SequenceMatcher(None, given, marker, autojunk=False).ratio() >= _MARKER_LIKENESS:
            return kind
    return None


def _is_notes_forward(line: str) -> bool:
    """Tell whether a line is a Lotus forward marker that a scanner damaged: marks, a Notes name, a date."""
    found = _NOTES_FORWARD.search(line)
    return found is not None and (line.count("-") + line.count("_") + line.count("~")) >= 4


def _repeats_subject(text: str, subject: str) -> bool:
    wanted = " ".join(subject.split()).lower()
    given = " ".join(text.split()).lower()
    return len(given) >= 6 and wanted.endswith(given)


def _body_after_separator(lines: Sequence[str], index: int) -> int:
    """Return where the quoted body starts: after the header block that follows a separator line, if any."""
    texts = 0
    for at in range(index + 1, min(len(lines), index + 30)):
        line = lines[at].strip()
        if not line:
            continue
        if _label_of(line):
            block = _header_block(lines, at, marked=True)
            if block is not None:
                return block
        texts += 1
        if texts > 10:
            break
    # "Forwarded by X on 01/16/2000" may continue on the next line: "08:48 PM --------"
    following = index + 1
    if following < len(lines) and lines[following].rstrip().endswith("---"):
        following += 1
    return following


def _header_block(lines: Sequence[str], start: int, *, marked: bool = False) -> int | None:
    """Return the line after the header block that starts at label line `start`, or None when it is none.

    Enough is a sender with two other labels, or recipients with a subject or a copy line. Below no marker it
    also names an address, or when it was sent: without them it is a list of the author's ("From: Berlin, To:
    Munich, Date: 12 March"). A repeated label ends the search, so that neighbouring calls never read the same
    lines twice.
    """
    labels: set[str] = set()
    end = start
    blanks = unknown = others = 0
    open_label = ""
    for index in range(start, min(len(lines), start + _MAX_HEADER_LINES)):
        line = lines[index].strip()
        if not line:
            blanks += 1
            if blanks > 3:
                break
            continue
        found = _label_of(line)
        if found:
            label = found.kind
            others += label == "other"
            if (label in labels and label != "other") or others > 8:
                break
            labels.add(label)
            open_label = label
            end = index + 1
            blanks = unknown = 0
            continue
        if blanks and open_label in ("subject", ""):
            break
        if len(line) > 300:
            break
        if blanks and not _continues_addresses(line):
            unknown += 2
        if _continues_addresses(line) and open_label in ("to", "cc", "from", "other"):
            end = index + 1 if not blanks else end
            blanks = unknown = 0
            continue
        unknown += 1
        if unknown > 2:
            break
        if not blanks and open_label == "subject" and unknown == 1:
            # A subject wraps; a body does not follow a subject without a blank line.
            end = index + 1
    if not marked and not (
        _names_a_mail(lines, start, end, labels)
        or _names_a_mail(lines, _lead_start(lines, start), start, labels)
    ):
        return None
    if "from" in labels and len(labels - {"from", "other"}) >= 2:
        return end
    if "to" in labels and ("subject" in labels or ("cc" in labels and "other" in labels)):
        # Two labels alone are also how one writes a memo or a list: ask for an address, a third label or
        # the date line that Lotus puts above.
        if len(labels) >= 3 or _lead_start(lines, start) < start:
            return end
        if any("/" in line for line in lines[start:end]):
            return end
    return None


def _names_a_mail(lines: Sequence[str], start: int, end: int, labels: set[str]) -> bool:
    """Tell whether a header block holds what lists of the author's do not: see `_header_block`."""
    for line in lines[start:end]:
        if _MAIL_HEADER.search(line):
            return True
        label = _label_of(line.strip())
        # A journey has a date, too, but is not "sent" and has no subject.
        dated = label is not None and label.kind == "sent" and _TIME_OR_YEAR.search(line)
        if dated and (labels & {"subject", "cc"} or not line.strip().lower().startswith(_DATE_WORDS)):
            return True
    return False


def _continues_addresses(line: str) -> bool:
    return "@" in line or "/" in line or line[-1] in ",;" or ("," in line and len(line) < 90) or ";" in line


def _lead_start(lines: Sequence[str], start: int) -> int:
    """Return the first line of what Lotus puts above the labels: name, date, "Sent by:", logo lines.

    Only lines that are joined to a date count; without a date the block starts at `start`.
    """
    top = start
    named = dated = False
    first = lines[start]
    if _DATE.search(first[:300]):
        return _with_company_above(lines, start)
    blanks = taken = 0
    for index in range(start - 1, max(-1, start - 30), -1):
        line = lines[index].strip()
        if not line:
            blanks += 1
            if blanks > 3:
                break
            continue
        if len(line) > 160 or taken > 10:
            break
        date = _DATE.search(line)
        if date and (not dated or blanks <= 1):
            dated = True
            rest = _AM_PM.sub("", line[: date.start()] + line[date.end() :])
            named |= sum(map(str.isalpha, rest)) >= 3
            top = index
        elif not dated and (_label_of(line) or _RESPOND.match(line)):
            pass
        elif _looks_like_name(line) and (blanks == 0 or (dated and not named and blanks <= 2)):
            named |= dated
            if dated:
                top = index
        else:
            break
        blanks = 0
        taken += 1
    return top if dated else start


def _with_company_above(lines: Sequence[str], start: int) -> int:
    """Include the sender's company or department, which Lotus prints above "From:".

    It is set in by a tab, or it stands apart from the text above and is longer than a person's name.
    """
    for index in range(start - 1, max(-1, start - 4), -1):
        line = lines[index]
        if line.strip():
            name = line.strip()
            apart = index < 2 or not (lines[index - 1].strip() or lines[index - 2].strip())
            if not _looks_like_name(name):
                return start
            return index if line.startswith("\t") or (apart and len(name.split()) >= 4) else start
    return start


def _with_rule_above(lines: Sequence[str], start: int) -> int:
    """Include a rule (Outlook draws one) or a bare "Original Message" directly above a header block."""
    index = start - 1
    while index >= 0 and start - index <= 3 and not lines[index].strip():
        index -= 1
    if index >= 0:
        rule = lines[index].strip()
        if len(rule) >= 5 and not rule.strip("_-=*"):
            return index
        if len(rule) <= _MAX_BARE_MARKER and _BARE_MARKER.fullmatch(rule):
            return index
    return start


def _looks_like_name(line: str) -> bool:
    """Tell whether a line could be a person's name, an address or a company in a Lotus header.

    A list's name stands in quotation marks; scanners add stray marks and lose the first capital.
    """
    if line[0] == line[-1] == '"' and len(line) > 2:
        return True
    tokens = [token for token in line.split() if any(map(str.isalnum, token)) or token == "&"]
    if not tokens or len(line) > 80 or len(tokens) > 8 or line[-1] in "!?:":
        return False
    names = [_NAME_TOKEN.match(token) is not None for token in tokens]
    return all(names) or (len(tokens) >= 3 and all(names[1:]) and tokens[0].isalpha())


# ---- the answered message --------------------------------------------------------------------------


def _answered_text(lines: Sequence[str], quoted: Sequence[str], body_after: int | None) -> str:
    """Return the own words of whoever is quoted first, without headers and deeper quotes."""
    source = lines[body_after:] if body_after is not None and not quoted else quoted
    text = _head(source)
    if not text.strip():
        return ""
    inner = split_quotes(text)
    # "> On … wrote:" and "> > …" above the answered words leave nothing of their own on top.
    return join_own(inner.lines, inner.own)


def _head(lines: Sequence[str]) -> str:
    text = "\n".join(lines)
    if len(text) < MAX_ANSWERED_CHARS:
        return text
    return text[: max(0, text.rfind("\n", 0, MAX_ANSWERED_CHARS))]


def join_own(lines: Sequence[str], own: Sequence[int], holes: Sequence[Hole] = ()) -> str:
    """Return the own lines as text; a cut between two of them becomes one blank line, a hole its mark."""
    shown = _without_holes(lines, holes)
    pieces: list[str] = []
    piece: list[str] = []
    previous = -1
    for index in own:
        if index != previous + 1 and piece:
            pieces.append("\n".join(piece))
            piece = []
        line = shown.get(index, lines[index]) if shown else lines[index]
        if line is not None:
            piece.append(line.rstrip())
        previous = index
    pieces.append("\n".join(piece))
    return "\n\n".join(stripped for piece_text in pieces if (stripped := piece_text.strip("\n")))


def _without_holes(lines: Sequence[str], holes: Sequence[Hole]) -> dict[int, str | None]:
    """Return what is left of lines with holes; None for a line whose rest stands on the line above."""
    shown: dict[int, str | None] = {}
    for hole in sorted(holes, reverse=True):  # from the end, so that the columns before it stay what they are
        (first, start), (last, end) = hole.start, hole.end
        left = shown.get(last)
        rest = (lines[last] if left is None else left)[end:]
        shown[first] = lines[first][:start] + hole.mark + rest
        shown.update(dict.fromkeys(range(first + 1, last + 1)))
    return shown


# ---- the second opinion ----------------------------------------------------------------------------


def is_confirmed(text: str, own_words: str, *, trust_marks: bool) -> bool:
    """Ask two other cutters about a mail that can be read in more than one way; one must agree.

    quotequail knows layouts but no inline answers. With `trust_marks` the other is the rule of RFC 3676: a
    line without ">" is the author's, the line that introduces a quote aside. It is not asked about a quote
    under an Outlook header, where the unmarked lines may be the sender's answers to what he quotes.
    Answers are compared word by word. A text too long to ask about is not confirmed.
    """
    if len(text) > _MAX_SECOND_OPINION_CHARS:
        return False
    wanted = own_words.split()
    if trust_marks and _unmarked_words(text) == wanted:
        return True
    opinion = quotequail.unwrap(text)
    if opinion is None:
        other = text
    else:
        other = "\n".join(opinion.get(part, "") for part in ("text_top", "text_bottom"))
    unmarked = "\n".join(line for line in other.split("\n") if not line.lstrip().startswith(">"))
    return unmarked.split() == wanted


def _unmarked_words(text: str) -> list[str]:
    """Return the words of all lines without a mark, up to a separator, without what introduces a quote."""
    kept: list[str] = []
    lines = text.split("\n")
    for index, line in enumerate(lines):
        stripped = line.strip()
        if stripped.startswith(">"):
            continue
        if stripped and stripped[0] in _DASHES and _SEPARATOR.match(stripped):
            break
        kept.append(line)
        if not stripped.endswith((":", "：")):
            continue
        following = _next_text(lines, index + 1)
        if following is not None and lines[following].lstrip().startswith(">"):
            start = _attribution_start(lines, index)
            if start is not None:
                del kept[start - index - 1 :]
    return " ".join(kept).split()
