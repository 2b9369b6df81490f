"""What stands below an author's words in every mail and is not voice: signatures, phone and list footers,
disclaimers, attachment markers, and the tail lines a mailbox repeats.

A greeting, a closing ("Best regards,") and the name typed under it are voice and stay.
Functions take the lines and the numbers of own lines, and return how many own lines to keep.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from training.mail.archive import is_record_sheet

# A share of mails that end in the same lines from which the lines count as a signature (voice.md §5).
REPEATED_TAIL_SHARE = 0.3
# Below three mails "repeated" means nothing.
MIN_REPEATS = 3
_MAX_TAIL_LINES = 10
# RFC 3676 §4.3 ends the body at "-- ", but people also type "--" between two parts of a text: more lines
# than this below it are a text.
_MAX_SIGNATURE_LINES = 15

_PHONE_FOOTER = re.compile(
    r"(?:[-*_ ]{0,3})(?:"
    r"(?:sent|posted|written) (?:from|via|with|by|using) (?:my |the |a )?(?:\w+ )?(?:iphone|ipad|ipod|"
    r"android|samsung|galaxy|"
    r"blackberry|phone|mobile|smartphone|tablet|handheld|windows phone|yahoo|gmail|mail for windows|outlook|"
    r"proton ?mail|htc|nokia|huawei|pixel|wireless|verizon|t-mobile|at&t|superhuman|mailbird|spark|aol|"
    r"hotmail)\b.{0,80}"
    r"|get (?:outlook for|bluemail for|your free) .{0,60}"
    r"|(?:von meinem|von mein|gesendet von|gesendet mit|diese nachricht wurde von meinem) .{1,60}"
    r"(?:gesendet|iphone|ipad|handy|smartphone|android|mobil\w*|mail|outlook|tablet).{0,40}"
    r"|(?:holen sie sich |télécharger |obtenez |obtener |obtén |scarica |ottieni |download |obter )?"
    r"outlook (?:für|for|pour|para|per|voor) (?:ios|android)\b.{0,30}"
    r"|envoyé (?:de(?:puis)?|à partir de) (?:mon|ma|l['’]application|yahoo|outlook|mail).{0,60}"
    r"|enviado (?:desde|do|da|a partir do|de) (?:mi|meu|minha|yahoo|outlook|correo|o meu|el).{0,60}"
    r"|inviato da(?:l mio)? .{0,10}(?:iphone|ipad|android|smartphone|cellulare|tablet|yahoo|outlook|"
    r"posta).{0,40}"
    r"|(?:verstuurd|verzonden) (?:vanaf|met|via|van) mijn .{0,40}"
    r"|(?:skickat|sänt) från (?:min|mitt|yahoo|outlook).{0,40}|sendt fra (?:min|mit|outlook).{0,40}"
    r"|lähetetty .{0,20}(?:puhelimesta|iphonesta|ipadista)|wysłane z .{0,40}"
    r")[.!]?$",
    re.I,
)
_DISCLAIMER_START = re.compile(
    r"[*\s_-]{0,5}(?:"
    r"(?:the information (?:contained|transmitted)|the contents? of this|this (?:e-?mail|message|"
    r"communication|transmission)\b)"
    r"|confidentiality (?:notice|note|statement)|notice of confidentiality|legal (?:notice|disclaimer)|"
    r"disclaimer\b"
    r"|important notice|privileged (?:and|&|/)|if you (?:are not|have received)|"
    r"please consider the environment"
    r"|think before you print|internet communications are not"
    r"|diese (?:e-?mail|nachricht)\b|der inhalt dieser|bitte (?:denken|prüfen) sie .{0,60}(?:umwelt|drucken|"
    r"ausdruck)"
    r"|ce (?:message|courriel|mail|courrier)\b|cet? (?:e-?mail)\b|les informations contenues"
    r"|este (?:mensaje|correo|e-?mail)\b|esta (?:mensagem|comunicação|comunicación)\b|"
    r"la información contenida|aviso legal"
    r"|questo (?:messaggio|e-?mail)\b|questa (?:e-?mail|comunicazione)\b|le informazioni contenute|avviso"
    r"|dit (?:bericht|e-?mail\w*)\b|deze (?:e-?mail|boodschap)\b|de informatie"
    r"|esta e-?mail\b|as informações|aviso de confidencialidade"
    r"|detta (?:meddelande|e-?post\w*|mejl)\b|denna (?:e-?post|information)\w*|denne (?:e-?mail|e-?post)"
    r")",
    re.I,
)
_DISCLAIMER_WORDS = re.compile(
    r"confidential|privileged|intended (?:solely|only|recipient|for the)|addressee|in error|unauthori[sz]ed|"
    r"not the intended|before printing|print this|property of|virus"
    r"|vertraulich|empfänger|irrtümlich|umwelt|ausdruck|confidentiel|destinataire|par erreur|imprimer"
    r"|confidencial|destinatario|por error|imprimir|riservat|confidenzial|per errore|destinatari"
    r"|vertrouwelijk|geadresseerde|abusievelijk|afdrukken|destinatário|por engano|konfidentiell|mottagar|"
    r"fortrolig",
    re.I,
)
_LIST_FOOTER = re.compile(
    r"(?:to )?(?:unsubscribe|un-subscribe)\b|you received this (?:message|e-?mail) because|"
    r"to post to this group"
    r"|for more options, visit this group|yahoo! groups (?:sponsor|links)|do you yahoo!\?|get your free"
    r"|get your private, free|free e-?mail from|chat with friends online|join (?:msn|"
    r"the world.s largest e-?mail)"
    r"|\w[\w.-]{0,60}@[\w.-]{1,60} mailing list|https?://\S{1,200}/(?:listinfo|mailman)\S*"
    r"|message (?:sent|copied)(?: to)?\s?:?[ _~-]*$|message (?:sent|copied) to:",
    re.I,
)
# A real rule, or what OCR makes of one ("'=", ";;;;", "~~~").
_ATTACHMENT = re.compile(
    r"[=;:~_*\-#.' ]{4,80}\s?ATT ?ACH|={6,80}\s?ATT?A?C?$|ATT CREATION TIME/DATE"
    r"|=+ ?END ATTACHMENT|\[ATTACHMENT\.[A-Z]"
)
_ATTACHMENT_LINE = re.compile(
    r"\s{0,10}(?:<{1,2} ?(?:File|OLE Object|Microsoft \w+)\s?:.{0,200}>{1,2}"
    r"|<<[^<>@:/]{1,120}\.\w{2,5} ?>>|\(See attached file: .{1,300}\)"
    r"|\(Embedded image moved .{0,200}\)|\[(?:IMAGE|image|cid|inline image)[^\]]{0,200}\]|"
    r"- \S.{0,80}\.(?:docx?|xlsx?|pptx?|pps|pdf|jpe?g|gif|png|bmp|tiff?|zip|txt|csv|wpd|rtf|vcf|html?|exe|"
    r"msg|eml|dat|mpe?g|mp[34]|avi|mov|wav|wmv))\s{0,10}$",
    re.I,
)
_RULE = re.compile(r"[-_=*~+#]{5,}$")
_KEPT_SHORT = re.compile(r"\s*(?:[-~]?\s?\w[.!]?|[:;=8xX][-o*'^]?[()DPp/|\]\[3*]+|[!?]+|<3+)\s*$")

_CLOSING = re.compile(
    r"(?:(?:many |much |with |kind |kindest |best |warm |warmest |all the |very |most |yours |sincerely |"
    r"freundliche |beste |liebe |"
    r"viele |herzliche |mit |bien |meilleures |un |saludos |cordiali |distinti |met |vriendelijke |"
    r"hartelijke |com os |med |vänliga )*)"
    r"(?:thanks|thank you|thx|tks|regards|rgds|best|cheers|sincerely|truly|yours|love|wishes|xo+|take care|"
    r"ciao|br|kr|"
    r"grüße|grüsse|gruß|gruss|grüßen|grüssen|lg|mfg|vg|danke|cordialement|amicalement|merci|salutations|"
    r"bien à vous|à bientôt|"
    r"saludos|saludo|gracias|atentamente|abrazo|saluti|grazie|cordialmente|groet|groeten|groetjes|bedankt|"
    r"atenciosamente|"
    r"abraços|abraço|obrigado|obrigada|hälsningar|hälsning|mvh|tack|hilsen|see you|talk soon|respectfully)"
    r"(?: (?:again|so much|a lot|in advance|and best regards|& best regards|all|everyone|to you|yours|"
    r"for your \w+))?[\s,.!\-–]*$",
    re.I,
)
_CONTACT = re.compile(
    r"(?:\d[\s().+/-]{0,3}){6,}|https?://|www\.|\S@\S|\b(?:tel|phone|fax|mobile|cell|mob|office|ext|suite|"
    r"off)\b[.: ]",
    re.I,
)


def is_closing(line: str) -> bool:
    """Tell whether a line is a closing phrase such as "Best regards,"."""
    return len(line) <= 60 and _CLOSING.match(line.strip()) is not None


def count_kept(lines: Sequence[str], own: Sequence[int]) -> tuple[int, str]:
    """Return how many leading own lines are the author's words, and why the rest is not ("" when all are)."""
    kept, reason = len(own), ""
    for position, index in enumerate(own):
        line = lines[index].strip()
        if not line:
            continue
        if line == "--" and _lines_left(lines, own, position + 1) <= _MAX_SIGNATURE_LINES:
            kept, reason = position, "signature"
            break
        footer = _footer_at(lines, own, position, line)
        if footer:
            kept, reason = position, footer
            break
    while True:
        last = _last_text(lines, own, kept)
        if last is None:
            return 0, reason
        line = lines[own[last]].strip()
        if len(line) <= 160 and (_PHONE_FOOTER.match(line) or _ATTACHMENT_LINE.match(line)):
            reason = reason or "footer"
        elif _is_noise(line) or "Hex-Dump" in line:
            reason = reason or "noise"
        else:
            return last + 1, reason
        kept = last


def _footer_at(lines: Sequence[str], own: Sequence[int], position: int, line: str) -> str:
    """Return the kind of footer that starts at an own line and runs to the end, or ""."""
    head = line[:200]
    if "AT" in head and _ATTACHMENT.match(head):
        return "attachment"
    if is_record_sheet(head):
        return "archive stamp"
    first = head[0].lower()
    if first in "*_-tcnlidpbeaq" and _DISCLAIMER_START.match(head):
        paragraph = _paragraph(lines, own, position)
        # The first paragraph of a mail about a confidential message is no disclaimer; one that also speaks
        # of the wrong recipient is.
        if len(_DISCLAIMER_WORDS.findall(paragraph)) >= (
            1 if position and _text_above(lines, own, position) else 2
        ):
            return "disclaimer"
    if first in "tufydgcjmhw" or "@" in head:
        if _LIST_FOOTER.match(head):
            return "list footer"
    elif first in "-_=*~" and _RULE.match(head):
        below = [lines[own[at]].strip() for at in range(position + 1, min(len(own), position + 5))]
        if any(_LIST_FOOTER.match(text[:200]) or text.endswith("mailing list") for text in below):
            return "list footer"
    return ""


def _text_above(lines: Sequence[str], own: Sequence[int], position: int) -> bool:
    return any(lines[own[at]].strip() for at in range(position))


def _paragraph(lines: Sequence[str], own: Sequence[int], position: int) -> str:
    parts: list[str] = []
    for at in range(position, min(len(own), position + 25)):
        line = lines[own[at]].strip()
        if not line:
            break
        parts.append(line[:1_000])
    return " ".join(parts)


def _lines_left(lines: Sequence[str], own: Sequence[int], position: int) -> int:
    left = 0
    for at in range(position, len(own)):
        left += bool(lines[own[at]].strip())
        if left > _MAX_SIGNATURE_LINES:
            break
    return left


def _last_text(lines: Sequence[str], own: Sequence[int], kept: int) -> int | None:
    for position in range(kept - 1, -1, -1):
        if lines[own[position]].strip():
            return position
    return None


def _is_noise(line: str) -> bool:
    """Tell whether a last line holds no word: rules, stray marks of scanned paper, "P6/(b)" stamps.

    An initial, an emoticon and "!!!" are the author's.
    """
    if len(line) > 200 or (not line.isascii() and any(ord(char) > 0x2000 for char in line)):
        return False
    if _KEPT_SHORT.match(line):
        return False
    return not any(len(run) > 1 for run in re.findall(r"\w+", line))


# ---- tails that a mailbox repeats ------------------------------------------------------------------

Tail = tuple[str, ...]


def tail_of(lines: Sequence[str], own: Sequence[int]) -> Tail:
    """Return the last own lines (at most ten, blank ones left out), spaces folded, in order."""
    tail: list[str] = []
    for index in reversed(own):
        line = lines[index]
        if line and not line.isspace():
            tail.append(" ".join(line.split())[:200])
            if len(tail) == _MAX_TAIL_LINES:
                break
    return tuple(reversed(tail))


def learn_tails(tails: Iterable[Tail]) -> frozenset[Tail]:
    """Return the endings that at least 30 % of a mailbox's mails share and that are signature, not voice.

    Closings and the name under them are cut off the front of each; a lone name is never a tail.
    """
    mails = [tail for tail in tails if tail]
    counts: Counter[Tail] = Counter()
    for tail in mails:
        for size in range(1, len(tail) + 1):
            counts[tail[-size:]] += 1
    needed = max(MIN_REPEATS, REPEATED_TAIL_SHARE * len(mails))
    learnt: set[Tail] = set()
    for tail, count in counts.items():
        if count >= needed and (signature := _without_voice(tail)):
            learnt.add(signature)
    return frozenset(learnt)


def _without_voice(tail: Tail) -> Tail:
    start = 0
    for position, line in enumerate(tail):
        if is_closing(line):
            start = position + 1
            if start < len(tail) and _is_typed_name(tail[start]):
                start += 1
    rest = tail[start:]
    if start == 0 and len(rest) > 1 and _is_typed_name(rest[0]) and not any(map(_CONTACT.search, rest)):
        rest = rest[1:]
    if len(rest) == 1 and not _CONTACT.search(rest[0]) and len(rest[0].split()) <= 4:
        return ()
    return rest


def _is_typed_name(line: str) -> bool:
    return len(line.split()) <= 3 and not any(map(str.isdigit, line)) and not _CONTACT.search(line)


def count_before_tail(lines: Sequence[str], own: Sequence[int], tails: frozenset[Tail]) -> int:
    """Return how many leading own lines stand before the longest learnt tail that the mail ends with."""
    if not tails:
        return len(own)
    ending = tail_of(lines, own)
    for size in range(len(ending), 0, -1):
        if ending[-size:] in tails:
            left = size
            for position in range(len(own) - 1, -1, -1):
                if lines[own[position]].strip():
                    left -= 1
                    if left == 0:
                        return _after_typed_name(lines, own, position)
    return len(own)


def _after_typed_name(lines: Sequence[str], own: Sequence[int], start: int) -> int:
    """Move the start of a tail below a name that stands directly under a closing: that name was typed."""
    above = _last_text(lines, own, start)
    if above is not None and is_closing(lines[own[above]]) and _is_typed_name(lines[own[start]].strip()):
        return start + 1
    return start
