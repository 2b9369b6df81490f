"""Which mails no person wrote: by header, by kind, by shape; and which mailboxes.

Header rules: RFC 3834 (Auto-Submitted), RFC 3464 (multipart/report), RFC 5546 (text/calendar), RFC 2919 and
RFC 2369 (List-*), and the fields that common servers add without an RFC (Precedence, X-Autoreply,
X-Auto-Response-Suppress, Feedback-ID). A post to a list is the author's writing: on sent mail, List-* fields
count only when the list itself is the sender.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from training.schemas import DropReason, Mail

FILTER_HEADERS = frozenset(
    {
        "auto-submitted", "content-class", "content-type", "feedback-id", "list-id", "list-post",
        "list-unsubscribe", "precedence", "return-path", "x-auto-response-suppress", "x-autoreply",
        "x-autorespond", "x-failed-recipients", "x-ownvoice-calendar",
    }
)  # fmt: skip
"""Lower-case names of the headers that this module reads; a store needs to keep no other."""

_CALENDAR_METHODS = frozenset({"request", "reply", "cancel", "counter", "declinecounter", "refresh", "add"})
"""RFC 5546 methods that calendars send by themselves; PUBLISH is a file for everybody."""

_AUTO_REPLY_SUBJECT = re.compile(
    r"\s{0,9}(?:auto(?:matic)?[- ]?(?:reply|response|antwort)|out[ -]of[ -](?:the[ -])?office(?! \w)|"
    r"out of office (?:auto|re)|autosvar|"
    r"abwesenheits(?:notiz|assistent|nachricht|meldung)|abwesen(?:d|heit)\s?:|"
    r"automatische antwort|réponse automatique|respuesta automática|risposta automatica|automatisch antwoord|"
    r"resposta automática|automatiskt svar|automatisk svar|ausser haus|absence du bureau|fuera de la oficina|"
    r"fuori sede|afwezig|fora do escritório|frånvaro)",
    re.I,
)
_BOUNCE_SUBJECT = re.compile(
    r"\s{0,9}(?:undeliver(?:able|ed)|delivery (?:status notification|failure|has failed)|"
    r"mail delivery (?:failed|system)|"
    r"returned mail|failure notice|unzustellbar|non remis|no se puede entregar|onbestelbaar|não entregue|"
    r"mancato recapito|kan inte levereras)",
    re.I,
)
_CALENDAR_SUBJECT = re.compile(
    r"\s{0,9}(?:accepted|declined|tentative(?:ly accepted)?|cancell?ed(?: event)?|(?:updated )?invitation|"
    r"new time proposed|zugesagt|abgelehnt|mit vorbehalt|abgesagt|accepté|refusé|provisoire|annulé|"
    r"aceptad[oa]|"
    r"rechazad[oa]|accettato|rifiutato|geaccepteerd|afgewezen|aceite|recusado|accepterat|avböjt)\s?:",
    re.I,
)
_INVITATION_BODY = re.compile(
    r"BEGIN:VCALENDAR|^\s{0,9}(?:when|wann|quand|cuándo|quando|wanneer|när)\s?:.{0,200}$[\s\S]{0,400}?"
    r"^\s{0,9}(?:where|wo|où|dónde|dove|onde|waar|var|who|calendar)\s?:|invite\.ics|calendar entry type:",
    re.I | re.M,
)
# What Outlook sends as a meeting request: labelled lines ("When:", "Wo:") above its own rule.
_MEETING_REQUEST = re.compile(r"\s{0,9}(?:\w{2,12}:[^\n]{0,300}\n\s{0,9}){1,4}(?:\*~){5}")
_RECEIPT_SUBJECT = re.compile(
    r"\s{0,9}(?:(?:not )?read|gelesen|ungelesen|lu|leído|letto|gelezen|lido|läst|"
    r"recall|rückruf|rappel|recuperar|richiamo|intrekken)\s?:",
    re.I,
)
_TASK_FIELD = re.compile(r"^\s{0,8}Task (?:Priority|Due On|Start Date):", re.M)
_RECEIPT_BODY = re.compile(
    r"was (?:read|deleted|displayed)|wurde .{0,60}(?:gelesen|gelöscht)|return receipt|"
    r"would like to recall|möchte die nachricht .{0,200}zurückrufen|souhaite rappeler le message|"
    r"desea recuperar el mensaje|desidera richiamare il messaggio|wil het bericht .{0,200}intrekken|"
    r"deseja recuperar a mensagem",
    re.I,
)
_ROBOT_SENDER = re.compile(r"(?:mailer-daemon|postmaster)@", re.I)
_NO_REPLY_SENDER = re.compile(
    r"(?:no[-_.]?reply|do[-_.]?not[-_.]?reply|notifications?|alerts?)(?:[+\w.-]{0,40})@", re.I
)
_LIST_SENDER = re.compile(
    r"(?:[\w.+-]{0,60}-(?:bounces|request|owner|admin)|owner-[\w.+-]{0,60}|listserv)@", re.I
)
_ADDRESS = re.compile(r"[^\s<>\"]{1,64}@[^\s<>\"]{1,190}")


def drop_by_headers(mail: Mail) -> DropReason | None:
    """Return why a mail is not a person's writing, judged without its body; None when it may be."""
    if mail.ai_generated:
        return DropReason.AI_GENERATED
    if mail.headers:
        reason = _drop_by_fields(mail.headers, mail.sender)
        if reason:
            return reason
    sender = mail.sender.lower()
    if sender:
        address = _ADDRESS.search(sender[:500])
        if address:
            if _ROBOT_SENDER.match(address.group()):
                return DropReason.BOUNCE
            if _NO_REPLY_SENDER.match(address.group()):
                return DropReason.MACHINE
            if _LIST_SENDER.match(address.group()):
                return DropReason.LIST
    if _AUTO_REPLY_SUBJECT.match(mail.subject):
        return DropReason.AUTO_REPLY
    if _BOUNCE_SUBJECT.match(mail.subject):
        return DropReason.BOUNCE
    calendar = _CALENDAR_SUBJECT.match(mail.subject)
    if calendar:
        # People write "Invitation:" and "Cancelled:" themselves; the answers come from the calendar alone.
        by_hand_too = "invit" in calendar.group().lower() or "cancel" in calendar.group().lower()
        if not by_hand_too or _INVITATION_BODY.search(mail.body_text[:5_000]):
            return DropReason.CALENDAR
    if "*~*~*~" in mail.body_text[:2_000] and _MEETING_REQUEST.match(mail.body_text[:2_000]):
        return DropReason.CALENDAR
    if "Task " in mail.body_text[:2_000] and len(_TASK_FIELD.findall(mail.body_text[:2_000])) >= 2:
        return DropReason.MACHINE
    if _RECEIPT_SUBJECT.match(mail.subject) and _RECEIPT_BODY.search(mail.body_text[:2_000]):
        return DropReason.MACHINE
    return None


def _drop_by_fields(headers: dict[str, str], sender: str) -> DropReason | None:
    def field(name: str) -> str:
        return headers.get(name, "").strip().lower()

    content_type = field("content-type")
    if content_type.startswith("multipart/report") or field("x-failed-recipients"):
        return DropReason.BOUNCE
    if field("return-path") == "<>":
        return DropReason.BOUNCE
    if content_type.startswith("text/calendar") or "calendarmessage" in field("content-class"):
        return DropReason.CALENDAR
    # Written by our importer: the method of a calendar part. An .ics that a person attached has none.
    if field("x-ownvoice-calendar") in _CALENDAR_METHODS:
        return DropReason.CALENDAR
    submitted = field("auto-submitted").split(";")[0].strip()
    if submitted and submitted != "no":
        return DropReason.AUTO_REPLY if submitted == "auto-replied" else DropReason.MACHINE
    if "x-autoreply" in headers or "x-autorespond" in headers:
        return DropReason.AUTO_REPLY if field("x-autoreply") != "no" else None
    suppress = {word.strip() for word in field("x-auto-response-suppress").split(",")}
    if suppress & {"dr", "autoreply", "all"}:
        return DropReason.AUTO_REPLY
    precedence = field("precedence")
    if precedence in ("bulk", "junk"):
        return DropReason.MACHINE
    if precedence == "auto_reply":
        return DropReason.AUTO_REPLY
    if field("feedback-id"):
        return DropReason.MACHINE
    if precedence == "list" or field("list-id") or field("list-unsubscribe"):
        list_address = field("list-post").removeprefix("<mailto:").rstrip(">")
        address = _ADDRESS.search(sender.lower()[:500])
        if address and (_LIST_SENDER.match(address.group()) or address.group() == list_address):
            return DropReason.LIST
    return None


# ---- shape -----------------------------------------------------------------------------------------

_TAG = re.compile(r"</?[A-Za-z][\w:.-]{0,60}[^<>\n]{0,200}>")
_MAX_PLAIN_WORD = 31
_PLAIN_WORD = re.compile(r"(?<![\w\\/_.=@:-])[A-Za-zÀ-ɏͰ-ӿ]['’\w]{0,30}(?![\w\\/_=@]|[.:]\w)")
_MACHINE_LINE = re.compile(
    r"\s{0,20}(?:[A-Z][A-Z0-9]{1,20}_[A-Z0-9_]{2,30}\s?[:=]|\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d|"
    r"(?:ERROR|WARN(?:ING)?|INFO|DEBUG|FATAL|TRACE)\b[: \[]|at [\w$.]{5,200}\(|Traceback |"
    r"\S{1,40}\s?(?:-->>|::=)\s|[{}\[\]];?$)"
)


def looks_machine_written(text: str) -> bool:
    """Tell whether a text is markup, a log or a data dump rather than sentences (first 4,000 characters)."""
    sample = text[:4_000]
    if "<" in sample and len("".join(_TAG.findall(sample))) > 0.5 * len(sample.strip()):
        return True
    lines = [line for line in sample.split("\n") if line.strip()]
    if len(lines) >= 4 and sum(_MACHINE_LINE.match(line) is not None for line in lines) > 0.4 * len(lines):
        return True
    if any(map(str.isalpha, sample)) and sample.isascii():
        tokens = sample.split()
        # Most texts have enough words between spaces alone, and the pattern need not count the rest.
        bare = sum([token.isalpha() and len(token) <= _MAX_PLAIN_WORD for token in tokens])
        few = 0.3 * len(tokens)
        return len(tokens) >= 12 and bare < few and len(_PLAIN_WORD.findall(sample)) < few
    return False


# ---- whole mailboxes -------------------------------------------------------------------------------

# A person repeats phrases; a job repeats the opening of its report. Shares measured on 11 mailboxes: the
# scheduling log 0.99, the next highest (a secretary's short notes) below 0.1.
MACHINE_SHARE = 0.5
_MIN_MAILS = 20
_MIN_TEMPLATE_MAILS = 10
_OPENING_CHARS = 60
_MIN_OPENING_LETTERS = 15
_NUMBER = re.compile(r"\d+")


def template_of(text: str) -> str:
    """Return the opening of a text with numbers masked: what the mails of one job have in common."""
    opening = _NUMBER.sub("0", " ".join(text[:400].split()))[:_OPENING_CHARS]
    return opening if sum(map(str.isalpha, opening)) >= _MIN_OPENING_LETTERS else ""


def find_machine_templates(texts: Sequence[str]) -> tuple[frozenset[str], str]:
    """Return the templates of a mailbox that a machine wrote, and why; a person's has none.

    `texts` are the own words of all mails. Machine-written means: at least 20 mails with text, half of which
    open with one of few templates that ten mails or more share.
    """
    templates = [template for text in texts if (template := template_of(text))]
    with_text = sum(bool(text.strip()) for text in texts)
    shared = {name: n for name, n in Counter(templates).items() if n >= _MIN_TEMPLATE_MAILS}
    repeated = sum(shared.values())
    if with_text < _MIN_MAILS or repeated < MACHINE_SHARE * with_text:
        return frozenset(), ""
    kinds = "one template" if len(shared) == 1 else f"one of {len(shared)} templates"
    return (
        frozenset(shared),
        f"{repeated} of {with_text} mails open with {kinds}, numbers aside (limit {MACHINE_SHARE:.0%}): "
        "a program wrote this mailbox, not a person",
    )
