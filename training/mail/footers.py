"""What programs, companies and lists put below a mail.

Phone and virus-scanner lines, disclaimers, list footers, meeting invitations, attachment markers, OpenPGP.

English first; German, French, Spanish, Italian, Dutch and Portuguese as the programs of each language write
them, and the commonest Scandinavian, Finnish and Polish ones.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

# What a mail is sent from or with: devices and mail programs.
_DEVICES = (
    r"i-?phone|i-?pad|ipod|android|samsung|galaxy|blackberry|smartphone|tablet|handheld|windows|surface|htc|"
    r"nokia|huawei|xiaomi|redmi|pixel|oneplus|motorola|sony|xperia|fairphone|wireless|verizon|t-mobile|at&t|"
    r"mobil\w*|phone|handy|gerät|telefon|portable|téléphone|appareil|móvil|teléfono|dispositivo|cellulare|"
    r"telefono|celular|telemóvel|toestel|apparaat|telefoon|puhelimesta|iphonesta|ipadista|"
    r"yahoo|gmail|outlook|hotmail|aol|gmx|web\.de|telekom|freenet\w*|orange|sfr|la poste|libero|virgilio|"
    r"ziggo|kpn|proton ?mail|tuta(?:nota|mail)?|superhuman|mailbird|mailspring|spark|bluemail|aquamail|k-9|"
    r"fastmail|thunderbird|nine|front|airmail|canary|edison|zoho|yandex|mail\.ru|mail for windows|messagerie"
)
_SENT = (
    r"(?:sent|posted|written|gesendet|verschickt|geschickt|geschrieben|envoyé|expédié|enviado|inviato|spedito|"
    r"verstuurd|verzonden|gestuurd|skickat|sänt|sendt|lähetetty|wysłane|wysłano)\s"
    r"(?:(?:from|via|with|by|using|von|mit|aus|über|de|depuis|à partir d[eu]|avec|par|desde|con|por|do|da|"
    r"dal|pelo|pela|com|a partir d[eo]|através d[eo]|tramite|vanaf|vanuit|met|van|från|fra|z|ze)\s|"
    r"dall['’]|con l['’])"
)
_APPS = r"(?:outlook|bluemail|spark|yahoo)\b"
PHONE_FOOTER = re.compile(
    r"[-*_\[ ]{0,3}(?:"
    r"(?:(?:bitte )?(?:entschuldig|excuse|sorry|pardon)[^.,;]{0,60}[.,;] ?)?"
    rf"{_SENT}.{{0,40}}?\b(?:{_DEVICES})\b.{{0,80}}"
    r"|(?:diese (?:e-?mail|nachricht|mail) wurde )?von "
    r"(?:mein\w*(?:/\w+)?|unterwegs|yahoo|outlook|gmx|der)\b.{0,60}gesendet\b.{0,60}"
    r"|(?:mobil|von unterwegs) (?:gesendet|geschrieben)"
    r"|(?:get|download|laden sie|holen sie sich|télécharge[rz]|obten(?:ez|ir|er|ga)|obtén|consiga|descargar?|"
    rf"descargue|scarica|ottieni|obter|obtenha|baixar|baixe|hämta|skaff) (?:o )?{_APPS}.{{0,80}}"
    r"|outlook (?:für|for|pour|para|per|voor|til|för) (?:ios|android)\b.{0,80}|get your free .{0,60}"
    r"|provenance ?: courrier pour windows.{0,20}|yahoo mail: search, organi[sz]e, conquer"
    r")[.!\]]?$",
    re.I,
)
"""A whole line that a telephone or a mail program adds; only looked for at the end of a mail."""

_FIRST_WORD = re.compile(r"[*\s_-]{0,5}([^\W\d_]+)")


def _by_first_word(*openings: str) -> dict[str, re.Pattern[str]]:
    """Return the patterns by the plain word that each must begin with: most lines are told by their own."""
    found: dict[str, list[str]] = defaultdict(list)
    for opening in openings:
        word = _FIRST_WORD.match(opening)
        assert word is not None
        found[word[1]].append(opening)
    return {word: re.compile(rf"[*\s_-]{{0,5}}(?:{'|'.join(ones)})", re.I) for word, ones in found.items()}


_MAIL = r"(?:e-?mail\w*|mail|message|communication|transmission)\b"
_NACHRICHT = r"(?:e-?mail|nachricht|mail)\b"
_COURRIEL = r"(?:message|courriel|courrier|e-?mail|mail)\b"
_CORREO = r"(?:mensaje|correo|e-?mail)\b"
_MESSAGGIO = r"(?:messaggio|e-?mail|mail|comunicazione)\b"
_MENSAGEM = r"(?:mensagem|comunicação|e-?mail)\b"
_BERICHT = r"(?:bericht|e-?mail\w*|boodschap)\b"
# Said of a mail by lawyers and printers alone: one of the words below is enough.
_LEGAL = _by_first_word(
    r"confidentiality(?: notice| note| statement|: this)",
    r"notice of confidentiality",
    r"legal (?:notice|disclaimer)",
    r"privileged ?(?:and|&|/) ?confidential",
    r"if you (?:are not the (?:intended|named|correct|addressee)|have received (?:this|the) " + _MAIL + ")",
    r"please consider the environment before",
    r"p please consider the environment",
    r"please (?:do not|don['’]t) print this",
    r"think before you print",
    r"save paper",
    r"internet communications are not",
    rf"this {_MAIL} (?:and any|and all|including|is for the named)\b",
    rf"information (?:contained|transmitted) in this {_MAIL}",
    rf"the (?:information (?:contained |transmitted )?(?:in|by|with) this|contents? of this) {_MAIL}",
    rf"any (?:views|opinions)(?: or opinions)? (?:presented|expressed|contained) in this {_MAIL}",
    r"irs circular 230",
    r"vertraulichkeitshinweis",
    r"vertraulichkeitserklärung",
    rf"hinweis: diese {_NACHRICHT}",
    rf"wichtiger hinweis: diese {_NACHRICHT}",
    r"rechtlicher hinweis",
    r"bitte (?:denken sie an die|prüfen sie der) umwelt",
    rf"diese {_NACHRICHT} (?:und|einschließlich)\b",
    rf"sollten sie diese {_NACHRICHT}",
    r"avis de confidentialité",
    r"pensez (?:à l['’]environnement|avant d['’]imprimer)",
    r"n['’]imprimez ce",
    r"afin de préserver l['’]environnement",
    r"pour préserver l['’]environnement",
    rf"ce {_COURRIEL}(?: électronique)? et\b",
    rf"les informations contenues dans cet? {_COURRIEL}",
    rf"la información contenida en este {_CORREO}",
    r"aviso (?:legal|de confidenciali[td]ad\w*)",
    rf"antes de imprimir est[ea] {_CORREO}",
    rf"antes de imprimir est[ea] {_MENSAGEM}",
    r"piense en el medio ambiente",
    r"piensa en el medio ambiente",
    rf"este {_CORREO}(?: electrónico)? [ye]\b",
    rf"le informazioni contenute in quest[oa] {_MESSAGGIO}",
    r"avviso (?:di riservatezza|legale)",
    r"ai sensi del (?:d\. ?lgs|regolamento|gdpr|reg\.)",
    rf"prima di stampare quest[oa] {_MESSAGGIO}",
    r"pensa all['’]ambiente",
    rf"questo {_MESSAGGIO} e[d ]",
    r"denk aan het milieu",
    rf"a informação contida nest[ae] {_MENSAGEM}",
    r"pense no meio ambiente",
)
# A letter may begin so, too: two of the words below are needed.
_ABOUT_THE_MAIL = _by_first_word(
    rf"this {_MAIL}",
    r"disclaimer\b",
    r"important notice",
    rf"diese {_NACHRICHT}",
    rf"der inhalt dieser {_NACHRICHT}",
    rf"ce {_COURRIEL}",
    rf"cet {_COURRIEL}",
    r"avis important",
    rf"este {_CORREO}",
    r"esta comunicación\b",
    r"aviso importante",
    r"en cumplimiento (?:del?|de la|con)\b",
    r"de conformidad con\b",
    rf"questo {_MESSAGGIO}",
    rf"questa {_MESSAGGIO}",
    r"avviso\b",
    r"ai sensi\b",
    rf"dit {_BERICHT}",
    rf"deze {_BERICHT}",
    rf"de informatie in d(?:it|eze) {_BERICHT}",
    rf"esta {_MENSAGEM}",
    rf"as informações contidas nest[ae] {_MENSAGEM}",
    r"em conformidade com",
    r"detta (?:meddelande|e-?post\w*|mejl)\b",
    r"denna (?:e-?post|information)\w*",
    r"denne (?:e-?mail|e-?post)",
)
_DISCLAIMER_WORDS = re.compile(
    r"confidential|privileged|intended (?:solely|only|recipient|for the|exclusively|to be used)|recipient|"
    r"addressee|in error|unauthori[sz]ed|necessarily represent|named person|before printing|print this|"
    r"property of|tax advice"
    r"|vertraulich|empfänger|adressat|irrtümlich|umwelt|rechtlich geschützt"
    r"|confidentiel|destinataire|par erreur|imprimer|sous réserve|engagement de la part|si nécessaire"
    r"|confidencial|destinatari|por error|imprimir|datos personales|rgpd|reglamento general|le informamos"
    r"|autorización (?:previa|escrita)|previa autorización|sometid|riservat|confidenzial|per errore|"
    r"destinatari\w|esclusivamente destinat|destinato (?:esclusivamente|unicamente)|stampare|ambiente"
    r"|vertrouwelijk|geadresseerde|abusievelijk|ten onrechte|niet voor u (?:is )?bestemd|afdrukken|milieu|"
    r"rechten worden|ontleend"
    r"|destinatário|destina-se exclusivamente|por engano|konfidentiell|mottagar|fortrolig",
    re.I,
)
_WORDS_NEEDED = 2
_MAX_PARAGRAPH_LINES = 25
# What a company must print on its letters, and where it keeps its policy.
_REGISTRATION = re.compile(
    r"geschäftsführ(?:er|ung)(?:in)?\s?:|\bHR[AB]\s?\d|sitz der gesellschaft\s?:|registergericht\s?:|"
    r"company registered in england|registered (?:in england .{0,20}(?:no|number)|office\s?:)|"
    r"informationen zum datenschutz finden",
    re.I,
)
_SCANNER = re.compile(
    r"(?:\[[^\]]{0,190}\] ?)?(?:virus-free|virenfrei|(?:garanti )?sans virus|libre de virus|"
    r"(?:mail )?priv[ao] di virus|virusvrij|(?:livre de|sem) vírus)\.? ?(?:<?(?:https?://)?www\.a(?:vast|vg)\.com|$)"
    r"|<https?://(?:www\.)?a(?:vast|vg)\.com/sig-email"
    r"|no virus found in this (?:incoming |outgoing )?message|nessun virus nel messaggio"
    r"|l['’]absence de virus dans ce courrier|el software de antivirus avast ha"
    r"|_{4,20} (?:information from|informationen? von|information (?:provenant )?d['e]) ?eset\b"
    r"|this (?:e-?mail|message) has been (?:checked for viruses|scanned (?:for viruses|by (?:mailscanner|"
    r"avast|avg|mcafee|norton|symantec|messagelabs|sophos|kaspersky|mimecast)))"
    r"|diese e-?mail (?:wurde von .{3,40} auf viren|ist frei von viren)"
    r"|cet e-?mail a été vérifié par .{0,20}antivirus"
    r"|este (?:correo electrónico|e-?mail) (?:ha sido comprobado|foi)"
    r"|questa e-?mail è stata controllata|dit e-?mailbericht is gecontroleerd op virus",
    re.I,
)
_LIST_FOOTER = re.compile(
    r"you received this (?:message|e-?mail) because you (?:are|have|signed|subscribed|opted)"
    r"|to post to this group|for more options, visit this group"
    r"|yahoo! groups (?:sponsor|links)|do you yahoo!\?|get your free"
    r"|get your private, free|free e-?mail from|chat with friends online|join (?:msn|"
    r"the world.s largest e-?mail)"
    r"|\w[\w.-]{0,60}@[\w.-]{1,60} mailing list|https?://\S{1,200}/(?:listinfo|mailman)\S*"
    r"|message (?:sent|copied)(?: to)?\s?:?[ _~-]*$|message (?:sent|copied) to:",
    re.I,
)
_UNSUBSCRIBE = re.compile(r"(?:to )?(?:unsubscribe|un-subscribe)\b", re.I)
# "To unsubscribe from the newsletter you have to find the link" is somebody's sentence.
_HOW_TO = re.compile(r"https?://|www\.|@|<|\bhere\b\W{0,3}$|: e-?mail|, e-?mail", re.I)
_LIST_NAME = re.compile(r"(?:mailing ?liste?n?|liste de diffusion .{1,40}|lista de correo .{1,40})$", re.I)
_INVITATION = re.compile(
    r"join zoom meeting|.{2,60} is inviting you to a scheduled zoom|join with google meet|"
    r"google meet joining info|(?:join|rejoindre) .{0,20}microsoft teams|"
    r"microsoft teams(?: meeting| need help|-besprechung|-vergadering)|"
    r"(?:réunion|reunión de|riunione di) microsoft teams",
    re.I,
)
_MAX_BEHIND_INVITATION = 10
# Without one of these no scanner, meeting or company's register is named.
_HINTS = re.compile(
    r"irus|IRUS|vírus|iren|vast\.com|avg\.com|ESET|Zoom|Google Meet|Microsoft Teams|HR[AB]|schäftsführ|"
    r"Sitz der|gistergericht|egistered|zum Datenschutz"
)
# A real rule, or what OCR makes of one ("'=", ";;;;", "~~~").
_ATTACHMENT = re.compile(
    r"[=;:~_*\-#.' ]{4,80}\s?ATT ?ACH|={6,80}\s?ATT?A?C?$|ATT CREATION TIME/DATE"
    r"|=+ ?END ATTACHMENT|\[ATTACHMENT\.[A-Z]"
)
ATTACHMENT_LINE = re.compile(
    r"\s{0,10}(?:<{1,2} ?(?:File|OLE Object|Microsoft \w+)\s?:.{0,200}>{1,2}"
    r"|<<[^<>@:/]{1,120}\.\w{2,5} ?>>|\(See attached file: .{1,300}\)"
    r"|\(Embedded image moved .{0,200}\)|\[(?:IMAGE|image|cid|inline image)[^\]]{0,200}\]|"
    r"- \S.{0,80}\.(?:docx?|xlsx?|pptx?|pps|pdf|jpe?g|gif|png|bmp|tiff?|zip|txt|csv|wpd|rtf|vcf|html?|exe|"
    r"msg|eml|dat|mpe?g|mp[34]|avi|mov|wav|wmv))\s{0,10}$",
    re.I,
)
"""A whole line that stands for a file; only looked for at the end of a mail."""
_PICTURE = re.compile(r"\s{0,10}\[(?:cid:|image: ?|inline image)[^\]]{0,200}\]\s{0,10}$", re.I)
_PICTURE_HINTS = ("[cid:", "[image: ", "[Image: ", "[inline image", "[Inline image")
_RULE = re.compile(r"[-_=*~+#]{5,}$")
_ARMOR_HEAD = "-----BEGIN PGP SIGNED MESSAGE-----"
_ARMOR_TAIL = "-----BEGIN PGP SIGNATURE-----"
_CIPHER_HEAD, _CIPHER_TAIL = "-----BEGIN PGP MESSAGE-----", "-----END PGP MESSAGE-----"


def find_armor(lines: Sequence[str], own: Sequence[int]) -> set[int]:
    """Return what OpenPGP puts above a signed text, marker and "Hash:", and encrypted blocks (RFC 9580)."""
    found: set[int] = set()
    ends = ""
    """The line that the armour goes on to; "" outside."""
    for index in own:
        line = lines[index].strip()
        if not ends and line in (_ARMOR_HEAD, _CIPHER_HEAD):
            ends = _CIPHER_TAIL if line == _CIPHER_HEAD else "blank"
        if not ends:
            continue
        if line or ends == _CIPHER_TAIL:
            found.add(index)
        if line == ends or (not line and ends == "blank"):
            ends = ""
    return found


def find_pictures(lines: Sequence[str], own: Sequence[int]) -> set[int]:
    """Return the lines that hold nothing but the name of a picture."""
    return {index for index in own if _PICTURE.match(lines[index][:240])}


def may_hold_pictures(text: str) -> bool:
    """Tell at a glance whether `find_pictures` can find any."""
    return "[" in text and any(hint in text for hint in _PICTURE_HINTS)


def footer_at(lines: Sequence[str], own: Sequence[int], position: int, line: str) -> str:
    """Return the kind of footer that starts at an own line and runs to the end, or "".

    `line` is that line without outer blanks; it holds something.
    """
    head = line[:200]
    if "AT" in head:
        if _ATTACHMENT.match(head):
            return "attachment"
        if head.startswith(_ARMOR_TAIL):
            return "OpenPGP"
    if _starts_disclaimer(lines, own, position, head):
        return "disclaimer"
    if _HINTS.search(head):
        if _SCANNER.match(head):
            return "footer"
        if _starts_invitation(lines, own, position, head):
            return "invitation"
        if _REGISTRATION.search(head) and _text_above(lines, own, position):
            return "disclaimer"
    first = head[0].lower()
    if first in "tufydgcjmhw" or "@" in head:
        if _LIST_FOOTER.match(head) or (first in "tu" and _tells_how_to_leave(lines, own, position, head)):
            return "list footer"
    elif first in "-_=*~#" and _RULE.match(head):
        return _footer_below_rule(lines, own, position)
    return ""


def _starts_disclaimer(lines: Sequence[str], own: Sequence[int], position: int, head: str) -> bool:
    found = _FIRST_WORD.match(head)
    word = found[1].lower() if found else ""
    legal = word in _LEGAL and _LEGAL[word].match(head) is not None
    if not legal and not (word in _ABOUT_THE_MAIL and _ABOUT_THE_MAIL[word].match(head)):
        return False
    # The first paragraph of a mail about a confidential message is no disclaimer; one that also speaks of the
    # wrong recipient is.
    needed = 1 if legal and _text_above(lines, own, position) else _WORDS_NEEDED
    return len(set(map(str.lower, _DISCLAIMER_WORDS.findall(_paragraph(lines, own, position))))) >= needed


def _starts_invitation(lines: Sequence[str], own: Sequence[int], position: int, head: str) -> bool:
    """Tell whether a line stands alone, or above a link: "Join Zoom meeting tomorrow if you can" does not."""
    found = _INVITATION.match(head)
    if found is None:
        return False
    below = lines[own[position + 1]] if position + 1 < len(own) else ""
    return len(head) - found.end() <= _MAX_BEHIND_INVITATION or "://" in head or "://" in below


def _tells_how_to_leave(lines: Sequence[str], own: Sequence[int], position: int, head: str) -> bool:
    if not _UNSUBSCRIBE.match(head):
        return False
    below = " ".join(lines[own[at]] for at in range(position, min(len(own), position + 2)))
    return _HOW_TO.search(below[:400]) is not None


def _footer_below_rule(lines: Sequence[str], own: Sequence[int], position: int) -> str:
    below = (lines[own[at]].strip()[:200] for at in range(position + 1, min(len(own), position + 5)))
    for text in below:
        if _LIST_FOOTER.match(text) or _LIST_NAME.search(text[-80:]) or _UNSUBSCRIBE.match(text):
            return "list footer"
        if _SCANNER.match(text):
            return "footer"
        if _INVITATION.match(text):
            return "invitation"
    return ""


def _text_above(lines: Sequence[str], own: Sequence[int], position: int) -> bool:
    return any(lines[own[at]].strip() for at in range(position))


def _paragraph(lines: Sequence[str], own: Sequence[int], position: int) -> str:
    parts: list[str] = []
    for at in range(position, min(len(own), position + _MAX_PARAGRAPH_LINES)):
        line = lines[own[at]].strip()
        if not line:
            break
        parts.append(line[:1_000])
    return " ".join(parts)
