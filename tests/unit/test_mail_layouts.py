"""Whose words: the fourteen reference cases, damaged markers, six languages, inline answers, leftovers."""

from __future__ import annotations

import pytest

from training.mail.clean import clean_mail
from training.mail.decode import normalise_text
from training.mail.explain import Explanation, explain
from training.schemas import DropReason, Mail

OWN = "Monday is fine with me, see you at ten in the office."
BOB = "Robert Leeuwenhoek-Something <robert.leeuwenhoek@example-company.com>"

# name → (own words, what stands below them). Publicly known hand-made cases; the best library gets ten of
# the fourteen (quotequail 0.5.4), Panza's expressions four.
REFERENCE = {
    "gmail": (
        "Sounds good, see you then.\n\nAnna",
        "\n\nOn Tue, 3 Mar 2026 at 10:12, Bob Lee <bob@x.com> wrote:\n\n> Can we meet?\n> Bob\n",
    ),
    "gmail, wrapped": ("Yes please.", f"\n\nOn Tue, 3 Mar 2026 at 10:12, {BOB}\nwrote:\n\n> Can we meet?\n"),
    "outlook": (
        "Thanks, approved.",
        "\n\nFrom: Bob Lee <bob@x.com>\nSent: Tuesday, March 3, 2026 10:12 AM\nTo: Anna <anna@y.com>\n"
        "Subject: Budget\n\nPlease approve.\n",
    ),
    "outlook, separator": (
        "Will do.",
        "\n\n-----Original Message-----\nFrom: Bob\nSent: Monday\nTo: Anna\nSubject: x\n\nplease do\n",
    ),
    "apple": (
        "Great idea!",
        "\n\n> On Mar 3, 2026, at 10:12 AM, Bob Lee <bob@x.com> wrote:\n> \n> What about lunch?\n",
    ),
    "german": (
        "Passt, danke!",
        "\n\nAm Di., 3. März 2026 um 10:12 Uhr schrieb Bob Lee <bob@x.com>:\n\n> Treffen?\n",
    ),
    "french": (
        "D'accord, merci.",
        "\n\nLe mar. 3 mars 2026 à 10:12, Bob Lee <bob@x.com> a écrit :\n\n> On se voit ?\n",
    ),
    "spanish": (
        "Perfecto, gracias.",
        "\n\nEl mar, 3 mar 2026 a las 10:12, Bob Lee (<bob@x.com>) escribió:\n\n> ¿Nos vemos?\n",
    ),
    "signature": (
        "See attached.\n\nBest,\nAnna",
        "\n\n-- \nAnna Smith\nCTO, Example GmbH\n+43 660 1234567\n",
    ),
    "phone": ("Running late, 10 min.", "\n\nSent from my iPhone\n"),
    "forward": (
        "FYI, see below.",
        "\n\n---------- Forwarded message ---------\nFrom: Bob <bob@x.com>\nDate: Tue, 3 Mar 2026\n"
        "Subject: hi\nTo: Anna\n\nbody\n",
    ),
    "a sentence with wrote": (
        "On Monday the committee met and I wrote: please hold the launch. They agreed.\n\nThanks,\nAnna",
        "",
    ),
    "disclaimer": (
        "OK for me.\n\nAnna",
        "\n\nThis email and any attachments are confidential and intended solely for the addressee. If you "
        "have received it in error please delete it.\n",
    ),
}
INLINE = (
    "Hi Bob,\n\nOn Tue, 3 Mar 2026 at 10:12, Bob Lee <bob@x.com> wrote:\n> Can we meet Monday?\n\n"
    "Monday works.\n\n> And the budget?\n\nStill waiting for finance.\n\nAnna"
)


def explained(body: str, **fields: object) -> Explanation:
    return explain(Mail(id="m", thread_id="t", position=0, body_text=body, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", REFERENCE)
def test_the_reference_cases_come_out_exact(name: str) -> None:
    own, below = REFERENCE[name]
    assert explained(own + below).own_words == own


def test_the_reference_case_of_inline_answers_comes_out_exact() -> None:
    assert explained(INLINE).own_words == ("Hi Bob,\n\nMonday works.\n\nStill waiting for finance.\n\nAnna")


# ---- markers that a scanner or a hand damaged --------------------------------------------------------

HEADER = "From: Bob\nSent: Monday\nTo: Anna\nSubject: x\n\nplease do"
NOTES = (
    "\n\nBob Lee\n03/03/98 09:55:01 AM\nRecord Type:    Record\n\nTo: Ann Example/OPD/EOP\ncc:\n"
    "Subject: x\n\ntext"
)


@pytest.mark.parametrize(
    "marker",
    [
        "-----Orginal Message-----",
        "-----Original Mesage-----",
        "-- - --Original Message-- ---",
        "----- 0riginal Message -----",
        "---—Original Message—---",
        "_____Orignal Message_____",
        "-----ORIGINAL MESSAGE-----",
        "---------- Forwaded message ---------",
        "---7------------------ Forwarded by Ann Example/OPD/EOP on 03/03/98 10:12 AM ---",
        "---------------------- F0rwarded by Ann Example/OPD/EOP on 03/03/98 10:12 AM ---",
        "____    u   __   u    u   ~~/~b~(~)_ ___ Forwarae~ ~~F~!nn  Example/WHO/EOP on OS/21/97 04:22",
        "- - - - - - - Forwarded by Ann Example/OPD/EOP on 03/03/98 10:12 AM - - - -",
        "          Forwarded by Ann Example/WHO/EOP on 12/29/97",
    ],
)
@pytest.mark.parametrize("below", [HEADER, NOTES])
def test_a_damaged_marker_still_ends_the_own_words(marker: str, below: str) -> None:
    assert explained(f"{OWN}\n\n{marker}\n{below}\n").own_words == OWN


@pytest.mark.parametrize(
    "line",
    [
        "-- please forward this by Monday --",
        "----- Organic Massage -----",
        "--- Original idea, message to follow ---",
        "The path is /home/eop on 03/03/98, as agreed.",
    ],
)
def test_a_line_of_dashes_that_says_something_else_stays(line: str) -> None:
    assert explained(f"{OWN}\n\n{line}\n\nAnna").own_words == f"{OWN}\n\n{line}\n\nAnna"


@pytest.mark.parametrize(
    "sheet",
    [
        "RECORD TYP,E: PRESIDENTIAL   (NOTES MAIL)\n\nCREATOR: Bob Lee",
        ".'    RECORD TYPE: PRESIDENTIAL    (NOTES MAIL)\n\n      CREATOR: Bob Lee",
        "R~CORD    TYPE: PRESIDENTIAL     (NOTES MAIL)\n\nTEXT:\nOther words.",
        "EMAILS RECEIVED\nARMS - BOX 042 - FOLDER -007\n\n[01/11/1999]",
        "Hex-Oilmp Conversion      DRAFT\nOther words.",
    ],
)
def test_the_record_sheet_of_the_next_mail_is_cut_with_what_follows(sheet: str) -> None:
    result = explained(f"{OWN}\n\n{sheet}")
    assert (result.own_words, {cut.reason for cut in result.cut}) == (OWN, {"archive stamp"})


@pytest.mark.parametrize(
    "stamp",
    [
        "A~MS Email System                                        Page 2 of 2",
        ",                 Page 2 of2",
        "--,,~ ARMS   Email System                               Page 1 of 2",
        ".,                                Page I of 6",
        "I                                                     Page 1 of 1",
        "Automated Records Management System",
        "Clinton Library Photocopy",
    ],
)
def test_a_page_stamp_goes_and_the_text_after_the_page_break_stays(stamp: str) -> None:
    assert explained(f"{OWN}\n   {stamp}\n\nBring the keys.\n\nAnna").own_words == (
        f"{OWN}\n\nBring the keys.\n\nAnna"
    )


# ---- six languages -----------------------------------------------------------------------------------

HEADERS = {
    "de, outlook": "Von: Bob Lee [mailto:bob@x.example]\nGesendet: Dienstag, 3. März 2026 10:12\nAn: Anna\n"
    "Cc: Carl\nBetreff: Treffen",
    "de, outlook web": "________________________________\nVon: Bob Lee <bob@x.example>\n"
    "Gesendet: Dienstag, 3. März 2026 10:12:33\nAn: Anna\nBetreff: Treffen",
    "de, thunderbird": "Am 03.03.26 um 10:12 schrieb Bob Lee:",
    "de, web mail": "Gesendet: Dienstag, 03. März 2026 um 10:12 Uhr\nVon: \"Bob Lee\" <bob@x.example>\n"
    "An: anna@y.example\nBetreff: Treffen",
    "de, apple forward": "Anfang der weitergeleiteten Nachricht:\n\nVon: Bob <bob@x.example>\n"
    "Betreff: Treffen\nDatum: 3. März 2026\nAn: Anna",
    "de, gmail forward": "---------- Weitergeleitete Nachricht ---------\nVon: Bob <bob@x.example>\n"
    "Datum: Di., 3. März 2026\nSubject: Treffen\nTo: Anna",
    "fr, outlook": "De : Bob Lee <bob@x.example>\nEnvoyé : mardi 3 mars 2026 10:12\nÀ : Anna\n"
    "Objet : Réunion",
    "fr, gmail": "Le mar. 3 mars 2026 à 10:12, Bob Lee <bob@x.example> a\nécrit :",
    "fr, thunderbird": "Le 03/03/2026 à 10:12, Bob Lee a écrit :",
    "fr, separator": "-----Message d'origine-----\nDe : Bob\nEnvoyé : mardi\nÀ : Anna\nObjet : Réunion",
    "fr, gmail forward": "---------- Message transféré ---------\nDe : Bob <bob@x.example>\n"
    "Date: mar. 3 mars\nSubject: Réunion\nTo: Anna",
    "es, outlook": "De: Bob Lee <bob@x.example>\nEnviado: martes, 3 de marzo de 2026 10:12\nPara: Anna\n"
    "Asunto: Cita",
    "es, gmail": "El mar, 3 mar 2026 a las 10:12, Bob Lee (<bob@x.example>)\nescribió:",
    "es, thunderbird": "El 3/3/26 a las 10:12, Bob Lee escribió:",
    "es, separator": "-----Mensaje original-----\nDe: Bob\nEnviado el: martes\nPara: Anna\nAsunto: Cita",
    "it, outlook": "Da: Bob Lee <bob@x.example>\nInviato: martedì 3 marzo 2026 10:12\nA: Anna\n"
    "Oggetto: Riunione",
    "it, gmail": "Il giorno mar 3 mar 2026 alle ore 10:12 Bob Lee <bob@x.example> ha\nscritto:",
    "it, thunderbird": "Il 03/03/26 10:12, Bob Lee ha scritto:",
    "it, separator": "-----Messaggio originale-----\nDa: Bob\nInviato: martedì\nA: Anna\nOggetto: Riunione",
    "nl, outlook": "Van: Bob Lee <bob@x.example>\nVerzonden: dinsdag 3 maart 2026 10:12\nAan: Anna\n"
    "Onderwerp: Afspraak",
    "nl, gmail": "Op di 3 mrt 2026 om 10:12 schreef Bob Lee <bob@x.example>:",
    "nl, thunderbird": "Op 03-03-2026 om 10:12 schreef Bob Lee:",
    "nl, separator": "-----Oorspronkelijk bericht-----\nVan: Bob\nVerzonden: dinsdag\nAan: Anna\n"
    "Onderwerp: Afspraak",
    "pt, outlook": "De: Bob Lee <bob@x.example>\nEnviado: terça-feira, 3 de março de 2026 10:12\nPara: Anna\n"
    "Assunto: Reunião",
    "pt, gmail": "Em ter., 3 de mar. de 2026 às 10:12, Bob Lee <bob@x.example>\nescreveu:",
    "pt, gmail in portugal": "Bob Lee <bob@x.example> escreveu (terça, 3/03/2026 à(s) 10:12):",
    "pt, thunderbird": "Em 03/03/2026 10:12, Bob Lee escreveu:",
    "pt, separator": "-----Mensagem original-----\nDe: Bob\nEnviada em: terça\nPara: Anna\nAssunto: Reunião",
    # Programs that put the name first and the date last.
    "de, gmail on a telephone": "Bob Lee <bob@x.example> schrieb am Di., 3. März 2026, 10:12:",
    "de, old thunderbird": "Bob Lee schrieb am 03.03.2026 10:12:",
    "en, notes": "Bob Lee <bob@x.example> wrote on 03/03/2026 10:12:33 AM:",
    "fr, notes": "Bob Lee a écrit sur 03/03/2026 10:12:33 :",
    "pt, apple in portugal": "Bob Lee <bob@x.example> escreveu no dia 03/03/2026 às 10:12:",
    "nl, roundcube": "Bob Lee schreef op 2026-03-03 10:12:",
    "de, tuta": "03.03.2026, 10:12 von bob@x.example:",
    "en, tuta": "Mar 3, 2026, 10:12 by bob@x.example:",
    # A name that the client wrapped, and a name that is only an address.
    "pt, wrapped after the name": "Maria da Conceição Albuquerque e Castro\n"
    "<maria@x.example> escreveu (terça, 3/03/2026 à(s)\n10:12):",
    "de, wrapped after the name": "Bob Leeuwenhoek-Something\n"
    "<bob@x.example> schrieb am Di., 3. März 2026, 10:12:",
    "de, address alone": "Am 03.03.2026 um 10:12 schrieb bob@x.example:",
    "it, address alone": "Il giorno 3 mar 2026, alle ore 10:12, bob@x.it ha scritto:",
    # Markers of their own.
    "groupwise": ">>> Bob Lee <bob@x.example> 03.03.2026 10:12 >>>",
    "groupwise, american": ">>> Bob Lee 03/03/26 10:12 AM >>>",
    "zoho": "---- On Tue, 03 Mar 2026 10:12:33 +0100 Bob Lee <bob@x.example> wrote ----",
    "fr, zimbra": "----- Mail original -----\nDe: \"Bob Lee\" <bob@x.example>\nÀ: anna@y.example\n"
    "Envoyé: Mardi 3 Mars 2026 10:12:33\nObjet: Réunion",
    "old proton": "‐‐‐‐‐‐‐ Original Message ‐‐‐‐‐‐‐\n"
    "On Tuesday, March 3, 2026 10:12 AM, Bob Lee <bob@x.example> wrote:",
    "blackberry": "  Original Message\nFrom: Bob Lee\nSent: Tuesday, March 3, 2026 10:12\nTo: Anna\n"
    "Subject: Meeting",
    "bold by two stars": "**From:** Bob Lee <bob@x.example>\n**Sent:** Tuesday, March 3, 2026 10:12 AM\n"
    "**To:** Anna\n**Subject:** Meeting",
    "de, on one line": "Von: Bob Lee Gesendet: Dienstag, 3. März 2026 10:12 An: Anna Betreff: Treffen",
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("quote", ["> Treffen, réunion, cita?\n> Bob", "Treffen, réunion, cita?\n\nBob"])
def test_quote_headers_of_six_languages_end_the_own_words(name: str, quote: str) -> None:
    assert explained(f"{OWN}\n\nAnna\n\n{HEADERS[name]}\n\n{quote}\n").own_words == f"{OWN}\n\nAnna"


@pytest.mark.parametrize(
    "head",
    [
        "Zitat von Bob Lee <bob@x.example>:",
        "Quoting Bob Lee <bob@x.example>:",
        "Selon Bob Lee <bob@x.example>:",
        "Am 03.03.2026 um 10:12 schriebst du:",
        "Bob Lee <bob@x.example> schrieb am Di., 3. März 2026, 10:12:",
        "Maria da Conceição Albuquerque e Castro\n<maria@x.example> escreveu (terça, 3/03/2026 à(s)\n10:12):",
    ],
)
def test_an_answer_below_a_marked_quote_is_all_that_stays(head: str) -> None:
    result = explained(f"{head}\n\n> Treffen am Montag?\n> Bob\n\n{OWN}\n\nAnna")
    assert (result.own_words, result.kept) == (f"{OWN}\n\nAnna", True)


@pytest.mark.parametrize(
    "text",
    [
        "My plan:\n\nFrom: Berlin\nTo: Munich\nDate: 12 March\n\nI am back on Friday.",
        "Hier mein Plan:\n\nVon: Berlin\nAn: Graz\nDatum: 12. März\n\nAm Freitag bin ich zurück.",
        "On 12 March 2026 Mr Sutton wrote:\n\nthat he agrees, and I think we should accept.",
        "My train:\n\nFrom: Leeds station, 9:30\nTo: York\nDate: 12 May 2026\n\nSee you there.",
        "Please write to us:\n\nTo: absence@school.example\nSubject: Absence and the name\n\nThank you.",
        "For the form:\n\nFrom: 3 June\nTo: 5 June\nSubject: Training for all of us\n\nNames follow.",
        "Bitte eintragen:\n\nVon: Konto der Abteilung\nAn: Druckerei\nBetreff: Rechnung\n\nDanke dir.",
        "Peter schrieb am Montag, dass er kommt, und zwar um zehn.",
        "On Monday I wrote to Peter: he agreed to move it.",
    ],
)
def test_own_words_that_look_like_the_header_of_a_quote_stay(text: str) -> None:
    assert explained(f"{text}\n\nAnna").own_words == f"{text}\n\nAnna"


# ---- inline answers and nested quotes ----------------------------------------------------------------

ATTRIBUTION = "On Tue, 3 Mar 2026 at 10:12, Bob Lee <bob@x.example> wrote:"


@pytest.mark.parametrize(
    "body",
    [
        f"{ATTRIBUTION}\n> Monday?\n{OWN}\n> The budget?\nStill waiting for finance to answer.\n",
        f"{ATTRIBUTION}\n\n> > Are you there?\n> Yes.\n> Monday?\n\n{OWN}\n\n>> The budget?\n\n"
        "Still waiting for finance to answer.",
        f"{ATTRIBUTION}\n> On Mon, 2 Mar 2026, Anna wrote:\n> > Where?\n> Here. Monday?\n\n{OWN}\n\n> Money?"
        "\n\nStill waiting for finance to answer.\n\n-- \nAnna Example\n",
        f"Bob Lee <bob@x.example> wrote:\n> Monday?\n\n{OWN}\n\n> Money?\n\n"
        "Still waiting for finance to answer.",
    ],
)
def test_inline_answers_stay_when_a_second_cutter_agrees(body: str) -> None:
    result = explained(body)
    assert result.own_words == f"{OWN}\n\nStill waiting for finance to answer."
    assert result.kept


@pytest.mark.parametrize(
    "body",
    [
        # An unmarked line between two quoted ones: the end of a wrapped line, or an answer?
        f"{ATTRIBUTION}\n> this quoted line was long enough for some client to wrap it once more, so its\n"
        f"Last words\n> stand alone here\n\n{OWN}",
        # A quote below an Outlook header: the unmarked lines may be Bob's answers to Anna.
        "-----Original Message-----\nFrom: Bob\nSent: Monday\nTo: Anna\nSubject: x\n\n> Shall we meet?\n\n"
        f"{OWN}",
    ],
)
def test_answers_on_which_the_cutters_disagree_are_dropped_and_counted(body: str) -> None:
    assert explained(body).drop_reason is DropReason.UNCLEAR_QUOTE


def test_own_words_above_a_chain_of_four_quoting_styles_are_all_that_stays() -> None:
    chain = (
        f"{OWN}\n\nAnna\n\n-----Original Message-----\nFrom: Bob\nSent: Monday\nTo: Anna\nSubject: RE: x\n\n"
        "Second.\n\n---------------------- Forwarded by Bob Lee/HOU/ECT on 03/03/2001 \n10:12 AM -----\n\n\n"
        "Carl Day\n03/02/2001 09:55 AM\nTo: Bob Lee/HOU/ECT@ECT\ncc:  \nSubject: x\n\nThird.\n\n"
        f"> {ATTRIBUTION}\n>> Fourth.\n>>> Fifth.\nTo: everybody\ncc: nobody\nSubject: x\n\nSixth.\n"
    )
    result = explained(chain)
    assert (result.own_words, len(result.cut)) == (f"{OWN}\n\nAnna", 1)


# ---- forwards without their header -------------------------------------------------------------------


def test_a_signed_forward_without_a_header_stays() -> None:
    cleaned = clean_mail(
        Mail(id="m", thread_id="t", position=0, subject="Fwd: Meeting", body_text=f"{OWN}\n\nAnna")
    )
    assert cleaned.is_bare_forward and cleaned.drop is None


# ---- quoted-printable and charset leftovers ----------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("one=20\ntwo", "one \ntwo"),
        ("a long line that was =\nbroken softly", "a long line that was broken softly"),
        ('see <a href=3D"x">', 'see <a href="x">'),
        ("caf=C3=A9 at ten=20\n", "café at ten \n"),
        ("don=92t wait, it=92s caf=E9 time", "don’t wait, it’s café time"),
        ("tab=09\nnext", "tab\t\nnext"),
        ("Enron=01,s plan=20\n", "Enron,s plan \n"),
        ("x=20 and y=30 are numbers", "x=20 and y=30 are numbers"),
        ("E=MC2, a=b, k=A0 stays", "E=MC2, a=b, k=A0 stays"),
        ("https://x.example/?q=3DA=20\n", "https://x.example/?q=A \n"),
        ("a = 20", "a = 20"),
    ],
)
def test_quoted_printable_leftovers_are_decoded_and_formulas_are_not(raw: str, text: str) -> None:
    assert normalise_text(raw) == text


# ---- footers in six languages ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "footer",
    [
        "Este mensaje y sus anexos son confidenciales y para uso exclusivo de su destinatario.",
        "AVISO LEGAL: este correo es confidencial.",
        "Questo messaggio è riservato e destinato esclusivamente ai destinatari.",
        "Le informazioni contenute in questo messaggio sono riservate.",
        "Dit bericht is vertrouwelijk en alleen bestemd voor de geadresseerde.",
        "Esta mensagem é confidencial e destinada apenas ao destinatário.",
        "Der Inhalt dieser E-Mail ist vertraulich und nur für den Empfänger bestimmt.",
        "Bitte denken Sie an die Umwelt, bevor Sie diese E-Mail ausdrucken.",
        "Les informations contenues dans ce courriel sont confidentielles.",
        "Please consider the environment before printing this e-mail.",
        "Gesendet mit der Telekom Mail App",
        "Von meinem/meiner Galaxy gesendet",
        "Gesendet von Outlook für iOS<https://aka.example/o0ukef>",
        "Mobil gesendet",
        "Laden Sie Outlook für iOS herunter",
        "Provenance : Courrier pour Windows 10",
        "Envoyé avec la messagerie sécurisée Proton Mail.",
        "Obtenga Outlook para iOS",
        "Enviado con Spark",
        "Inviato dal mio Huawei",
        "Verzonden vanuit Mail voor Windows",
        "Baixar o Outlook para iOS",
        "Sent from my Xiaomi",
        "Sent with [Proton Mail](https://proton.example/) secure email.",
        "Virus-free. www.avast.com",
        "Virenfrei.www.avast.com <https://www.avast.com/sig-email?utm_medium=email>",
        "Garanti sans virus. www.avast.com",
        "No virus found in this message.\nChecked by AVG - www.avg.com\nVersion: 2014.0.4570",
        "---\nL'absence de virus dans ce courrier électronique a été vérifiée par le logiciel "
        "antivirus Avast.",
        "Any views or opinions presented in this email are solely those of the author and do not necessarily "
        "represent those of the company.",
        "IRS Circular 230 Disclosure: any tax advice is not intended to be used to avoid penalties.",
        "Hinweis: Diese E-Mail kann vertrauliche Informationen enthalten.",
        "Example GmbH | Sitz der Gesellschaft: Berlin | Registergericht: AG Charlottenburg HRB 1",
        "Pensez à l'environnement avant d'imprimer ce message.",
        "En cumplimiento del Reglamento General de Protección de Datos, le informamos de sus derechos.",
        "Ai sensi del D.Lgs. 196/2003 le informazioni in questo messaggio sono riservate.",
        "Denk aan het milieu voordat u deze e-mail print.",
        "Antes de imprimir este e-mail pense bem se é mesmo necessário imprimir.",
        "_______________________________________________\nProjekte Mailingliste\nProjekte@lists.x.example",
        "Join Zoom Meeting\nhttps://zoom.example/j/1234567890",
        "Réunion Microsoft Teams\nRejoindre sur votre ordinateur ou application mobile",
        "-----BEGIN PGP SIGNATURE-----\n\niQEzBAEBCAAdFiEE\n-----END PGP SIGNATURE-----",
        "Envoyé depuis mon téléphone Android",
        "Enviado desde mi Galaxy",
        "Inviato dal mio cellulare",
        "Verzonden vanaf mijn telefoon",
        "Enviado do meu telemóvel",
        "Sent from Outlook for Android",
        "Sent from Proton Mail for iOS",
        "Holen Sie sich Outlook für iOS",
        "To unsubscribe from this group, send an email to dev+unsubscribe@x.example.",
        '-- \nYou received this message because you are subscribed to the Google Groups "dev" group.',
        "_______________________________________________\ndev mailing list -- dev@lists.x.example\n"
        "To unsubscribe send an email to dev-leave@lists.x.example",
    ],
)
def test_legal_phone_and_list_footers_are_cut(footer: str) -> None:
    assert explained(f"{OWN}\n\nBest,\nAnna\n\n{footer}\n").own_words == f"{OWN}\n\nBest,\nAnna"


@pytest.mark.parametrize(
    "text",
    [
        "If you are not well, stay at home, the virus spreads fast.",
        "If you have received two invoices, one was sent in error.",
        "Important notice for group B: there is a stomach virus.",
        "Please consider the environment day when you print the list.",
        "Der Inhalt dieser Mail ist bitte vertraulich zu behandeln.",
        "Bitte denken Sie daran, den Ausdruck mitzubringen.",
        "Antes de imprimir los carteles, míralos otra vez.",
        "Prima di stampare le locandine, guardale ancora una volta.",
        "Avis important : il faut imprimer l'attestation.",
        "Ai sensi del contratto, il destinatario paga il trasporto.",
        "Dit bericht is vertrouwelijk en alleen bestemd voor het bestuur.",
        "Esta mensagem destina-se apenas aos tenores, os outros receberam por engano.",
        "The company's registered office can stay in Bristol for now.",
        "Der Sitz der Gesellschaft soll nach Köln verlegt werden.",
        "You received this email because your child starts with us in May.",
        "Microsoft Teams meeting on Wednesday is cancelled, see you on Friday.",
        "Join Zoom meeting tomorrow if you can, it is at ten.",
        "This message has been scanned by two scanners, you can open it.",
        "Diese E-Mail ist vertraulich, bitte leite sie vor Montag an niemanden weiter.",
        "Ce message est confidentiel : Pierre en parlera lundi.",
        "This e-mail is confidential, please do not forward it before Monday.",
        "To unsubscribe your mother from the club I need her signature.",
        "Enviado por correo ayer, llega el lunes.",
        "We will get Outlook for the whole team in May.",
        "Von Peter gesendet wurde noch nichts, ich frage nach.",
        "Join us for lunch on Monday, the meeting is at ten.",
    ],
)
def test_own_words_that_look_like_a_footer_stay_in_every_language(text: str) -> None:
    body = f"{OWN}\n\n{text}\n\nAnna"
    assert explained(body).own_words == body


def test_what_a_signed_mail_is_wrapped_in_is_cut() -> None:
    body = (
        f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{OWN}\n\nAnna\n\n- -- \nAnna Example\n"
        "-----BEGIN PGP SIGNATURE-----\n\niQEzBAEBCAAdFiEE\n-----END PGP SIGNATURE-----\n"
    )
    assert explained(body).own_words == f"{OWN}\n\nAnna"


def test_an_encrypted_block_is_nobodys_words() -> None:
    block = "-----BEGIN PGP MESSAGE-----\n\nhQEMA1X2\nqkL9Tn4x\n=ab12\n-----END PGP MESSAGE-----"
    assert explained(block).drop_reason is DropReason.TOO_SHORT
    assert explained(f"{OWN}\n\n{block}\n\nAnna").own_words == f"{OWN}\n\nAnna"


def test_the_recall_of_a_mail_is_no_mail() -> None:
    body = 'Example, Anna would like to recall the message, "Prices".'
    assert explained(body, subject="Recall: Prices").drop_reason is DropReason.MACHINE


def test_the_name_of_a_picture_between_two_paragraphs_is_cut() -> None:
    body = f"{OWN}\n\n[cid:image001.png@01DA7000.12345678]\n\nThat is the new door.\n\nAnna"
    assert explained(body).own_words == f"{OWN}\n\nThat is the new door.\n\nAnna"


@pytest.mark.parametrize(
    "head",
    [
        "ET & S Business Intelligence\nFrom: Lorna Brandt on 02/28/2000 02:50 PM",
        '"Word of the Day Confirmation from List Manager" \n<list-30@example.com> on 05/10/2001 03:51 PM',
        "Bruno N. Reeve   .\n12/07/98 03:13:42 PM",
        "cynthia A. Roth\n12/08/98 04:19:33 PM",
    ],
)
def test_who_is_quoted_goes_with_the_header_of_the_quote(head: str) -> None:
    quoted = f"{head}\nTo: Drew Falk/ET&S/Firm@FIRM\ncc:\nSubject: Storage\n\nOther words."
    assert explained(f"{OWN}\n\n\n{quoted}").own_words == OWN


def test_the_authors_name_above_a_quoted_header_stays() -> None:
    quoted = "From: Lorna Brandt on 02/28/2000 02:50 PM\nTo: Drew Falk\ncc:\nSubject: Storage\n\nOther words."
    assert explained(f"{OWN}\n\n\nDrew Falk\n{quoted}").own_words == f"{OWN}\n\n\nDrew Falk"


def test_a_task_of_a_calendar_program_is_no_mail() -> None:
    body = f"\tTASK ASSIGNMENT\n\nTask Priority:\t\t1\nTask Due On:\t\t\nTask Start Date:\t\n\n{OWN}"
    assert explained(body).drop_reason is DropReason.MACHINE
