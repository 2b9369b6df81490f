"""Replace what must never be learnt: keys, passwords, card and account numbers, one-time codes, login links.

Numbers count only when their checksum holds (Luhn, ISO 7064 mod 97-10) and issuer or country use their
length, so that phone and order numbers stay; those without one (American social security, British accounts)
count in their own grouping or by their name. Passwords are found by `training.mail.passwords`. Linear time on
any text: repetition in patterns is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from training.mail import passwords

PLACEHOLDERS = (
    "[private key]", "[API key]", "[password]", "[card number]", "[account number]", "[code]", "[link]",
    "[ID number]",
)  # fmt: skip

IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27,
    "BR": 29, "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28,
    "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23,
    "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27,
    "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25,
    "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18,
    "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33,
    "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SO": 23, "ST": 25, "SV": 28,
    "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}  # fmt: skip
"""Characters of an IBAN by country (SWIFT IBAN registry). Without them one text in five that starts like an
IBAN would pass mod 97 at some length."""


@dataclass(frozen=True, slots=True)
class Redacted:
    """A text without its secrets; `removed_chars` is how much of the original they were."""

    text: str
    count: int
    removed_chars: int


_KEY_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----")
_KEY_END = re.compile(r"-----END (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----")
_PUTTY_BEGIN = re.compile(r"PuTTY-User-Key-File-\d")
_PUTTY_END = re.compile(r"Private-MAC:[^\n]{0,200}")

_API_KEY = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"sk-[A-Za-z0-9_-]{16,200}|[sprw]k_(?:live|test)_[A-Za-z0-9]{10,200}|gh[pousr]_[A-Za-z0-9]{20,255}"
    r"|github_pat_[A-Za-z0-9_]{20,255}|glpat-[A-Za-z0-9_-]{15,200}|xox[abeprs]-[A-Za-z0-9-]{10,200}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{30,60}|ya29\.[0-9A-Za-z_-]{20,200}|hf_[A-Za-z0-9]{20,100}"
    r"|npm_[A-Za-z0-9]{30,60}|pypi-[A-Za-z0-9_-]{30,250}|SG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,64}"
    r"|xapp-[A-Za-z0-9-]{20,200}|GOCSPX-[A-Za-z0-9_-]{20,60}|whsec_[A-Za-z0-9+/=]{20,100}"
    r"|AGE-SECRET-KEY-1[0-9A-Z]{50,70}|dop_v1_[a-f0-9]{64}|shpat_[a-fA-F0-9]{32}"
    r"|glrt-[A-Za-z0-9_-]{20,60}|key-[0-9a-f]{32}|[0-9a-f]{32}-us\d{1,2}|EAAA[A-Za-z0-9_-]{56,100}"
    r"|(?:secret|ntn)_[A-Za-z0-9]{40,60}|lin_api_[A-Za-z0-9]{32,60}|ATATT3[A-Za-z0-9_=-]{40,250}"
    r"|sl\.[A-Za-z0-9_-]{60,200}|hvs\.[A-Za-z0-9_-]{20,200}|gsk_[A-Za-z0-9]{40,60}|dckr_pat_[A-Za-z0-9_-]{20,60}"
    r"|tskey-[A-Za-z0-9-]{20,80}|\d{8,10}:AA[A-Za-z0-9_-]{30,40}|1//0[A-Za-z0-9_-]{40,150}"
    r"|[A-Za-z0-9_-]{3}\dQ~[A-Za-z0-9_.~-]{31,40}"
    r"|eyJ[A-Za-z0-9_-]{10,2000}\.[A-Za-z0-9_-]{10,4000}(?:\.[A-Za-z0-9_-]{5,2000})?"
    r")(?![A-Za-z0-9])"
)
_BEARER = re.compile(r"\b(Bearer|Basic) (?=[A-Za-z0-9+/_.=-]*\d)[A-Za-z0-9+/_.=-]{16,500}")
_NAMED_KEY = re.compile(
    r"(?<![A-Za-z0-9])((?:\w{1,20}[_-])?(?:shared)?(?:api|access|secret|client|private|auth|session|signing|encryption|license|licence|product|"
    r"account)[ _-]?"
    r"(?:key|token|secret|id token)|secret|token|apikey)([\"']?\s{0,3}(?:is|[:=])\s{0,3}[\"'`]?)"
    r"(?=[A-Za-z0-9+/_.=-]{0,200}\d)[A-Za-z0-9+/_.=-]{12,500}",
    re.I,
)
# What follows "key" and mixes letters with digits for 16 characters is one, whatever stands between.
_BARE_KEY = re.compile(
    r"(?<![^\W_])((?:key|token|secret)s?)([\"']?\s{0,3}(?:(?:is|was|[:=])\s{0,3})?[\"'`]?)"
    r"(?:(?=[A-Za-z]{0,64}\d)(?=\d{0,64}[A-Za-z])[A-Za-z0-9]{16,512}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
    r"(?![\w@-])",
    re.I,
)
# "The secret that goes with it is …": in the same sentence, with capitals, small letters and digits.
_NEAR_KEY = re.compile(
    r"(?<![^\W_])(?P<lead>(?:key|token|secret)s?\b[^\n.!?]{0,60}?[\s\"'`:=])"
    r"(?P<value>[A-Za-z0-9][A-Za-z0-9+/_.~=-]{30,200}[A-Za-z0-9=])(?![\w@])"
)
# XK7FD-93HTR-QW2PM-8VB6C: five groups or so of five.
_LICENCE = re.compile(r"(?<![\w-])(?=[A-Z-]{0,35}\d)[A-Z0-9]{5}(?:-[A-Z0-9]{5}){3,5}(?![\w-])")
# 32 and more characters with letters and digits mixed: a token of some service, or a hash.
_LONG_TOKEN = re.compile(
    r"(?<![\w/@.-])(?=[A-Za-z]{0,64}\d)(?=\d{0,64}[A-Za-z])[A-Za-z0-9]{32,512}(?![\w@-])"
)

_PIN = re.compile(
    r"\b(PIN|P\.I\.N\.)((?:[ -]?(?:[Cc]ode|[Nn]umber|[Nn]o\.?))?"
    r"(?:\s{0,3}(?:is|ist|lautet|est|es|[:=#])?\s{0,3}|"
    r"[^\n\d.!?]{2,30}?\s(?:is|ist|lautet|est|es|è|é)\s{1,3}))\d{4,8}\b"
)
_OWN_PIN = re.compile(
    r"\b((?:my|your|his|her|our|their|new|card|bank|atm|sim|phone|door|alarm) pin(?: code| number)? )"
    r"\d{4,8}\b",
    re.I,
)
_PIN_SAID = re.compile(
    r"\b(pin)((?:[ -]?(?:code|number|no\.?))?(?:['’]s)?\s{0,3}(?:is|ist|est|es|[:=]|#:?)\s{0,3})"
    r"(?:\d{3}-\d{4}|\d{4,8})\b",
    re.I,
)
# What opens something, whoever says it how. TAN is no tan.
_CODE = re.compile(
    r"\b(?P<word>otp|puk|(?-i:[a-z]{0,3}TAN)|2fa|mfa|one[- ]time (?:code|password|passcode)|"
    r"(?:verification|security|confirmation|access|login|log-in|sign-in|authentication|auth|activation|"
    r"unlock|gate|entry|backup|recovery|alarm|door|participant|host|conference|pass)[ -]?(?:code|pin|key)s?|"
    r"(?:participant|host|conference)[ -]?numbers?|"
    r"code d['’](?:accès|entrée)|"
    r"code de (?:vérification|sécurité|confirmation|la porte)|code du portail|"
    r"código de (?:verificación|seguridad|verificação|segurança|acceso|acesso)|"
    r"codice (?:di (?:verifica|sicurezza|accesso)|d['’]accesso)|"
    r"verifieringskod|säkerhetskod)(?!\w)"
    r"(?P<gap>[^\n\d]{0,25}|[ \t]{0,3}\n)"
    r"(?P<value>\d{3}[ -]\d{3}|\d{4}-\d{4}(?:(?:, ?| and | und | et | y | e )\d{4}-\d{4}){0,12}|"
    r"\d{4,10}|[A-Z0-9]{2,5}-[A-Z0-9]{2,5})(?![\w-]*\w)",
    re.I,
)
# "Türcode", "toegangscode"
_CODE_COMPOUND = re.compile(
    r"(?P<word>code)(?<=[^\W\d_][^\W\d_]code)(?!\w)(?P<gap>[^\n\d]{0,25}|[ \t]{0,3}\n)"
    r"(?P<value>\d{3}[ -]\d{3}|\d{4,10})(?![\w-]*\w)",
    re.I,
)
_CODE_SAID = re.compile(
    r"(?P<before>\b[^\W\d_]{2,12}[ -])?\b(?P<word>(?:code|código|codice)s?)"
    r"(?P<gap>(?:['’]s|[ \t](?:for|to|of|zur?|zum|für|pour|del?|du|della?|da|do|van|voor)[ \t]"
    r"[^\n\d.:!?]{2,40}?)?[ \t\xa0]{0,2}(?::|=|,|\b(?:is|was|will be|lautet|ist|est|es)\b|è|é)?[ \t\xa0]{0,3}"
    r"\n{0,2}\#?)(?P<value>\d{3}[ -]\d{3}|\d{4,10}|(?=[A-Z]{0,15}\d)[A-Z0-9]{5,16})(?![\w-]*\w)",
    re.I,
)
# "zip code: 77046", "course code is MATH2301" and "the code is 20000 lines" open nothing; "the code" does.
_OF_CODES_THAT_OPEN = """
    a an the this that my your his her its our their new old same it's is was and or me you us them
    door gate entry garage house lift safe box lockbox keypad building alarm wifi wi-fi wlan sms text login
    access verification security confirmation unlock activation backup recovery temporary one-time secret
    der den dein deinen ihr ihren unser unseren mein meinen ein einen dem zum tür haustür tor garagen zugangs
    zutritts bestätigungs sicherheits freischalt aktivierungs einmal anmelde login entsperr pin tan sms alarm
    le mon ton son votre notre un el tu su mi il lo o os seu teu de je mijn jouw uw een deur toegangs inlog
    verificatie beveiligings
"""
_CODES_THAT_OPEN = frozenset(_OF_CODES_THAT_OPEN.split())
_CLAUSE_ENDS = re.compile(
    r"[ \t]*(?:[\n.,;:)!?#/(-]|$|(?:and|but|or|to|for|on|at|if|when|until|then|as|und|oder|et|ou|y|e|en)\b)"
)
_LETTERS_BEFORE = re.compile(r"[^\W\d_]+$")
_SHORT_WORDS = frozenset({"2fa", "mfa", "otp", "puk", "tan"})
# "The conference number is 01632 960500"
_REST_OF_PHONE = re.compile(r"(?<=\d)[ -]\d{3}")
_YEAR = re.compile(r"(?:19|20)\d\d")
# The gap before a value ends with what tells it.
_SAYS = re.compile(r"(?:[:=\n]|\b(?:is|was|be|ist|lautet|est|es)|['’]s|[èé])[\s\#\"'“*]*$")
# "use 482913 to log in"
_CODE_USED = re.compile(
    r"\b((?:use|enter|type|dial|press|gib|tippe|saisis|introduce|usa)(?: the)?(?: code)? )\d{5,8}"
    r"(?= (?:to (?:log|sign|get|open|enter|unlock|verify|confirm|access|activate|join)|when |if it|ein\b|"
    r"pour (?:entrer|ouvrir)|para (?:entrar|abrir)|per (?:entrare|aprire)))",
    re.I,
)
_CODE_FIRST = re.compile(
    r"(?<![\w.,-])(?:[A-Z]-)?(?:\d{3}[ -]\d{3}|\d{4,8})"
    r"(?= (?:is|ist|est|es) (?:your|the|my|ihr|dein|votre|tu|su) [\w -]{0,30}"
    r"\b(?:\w{0,20}code|código|pin|tan|otp|password)\b)",
    re.I,
)
_CVV = re.compile(
    r"\b((?:cvv2?|cvc2?|card security code)[ \t]{0,2}(?:code|number)?\s{0,2}(?:is|[:=#])?\s{0,3})\d{3,4}\b",
    re.I,
)
_SSN = re.compile(r"\b((?:ssn|social security)[^\n\d]{0,25})\d{3}[- ]?\d{2}[- ]?\d{4}\b", re.I)
# Numbers that the Social Security Administration gives out: no area 000, 666 or 900-999, no group 00.
_BARE_SSN = re.compile(r"(?<![\w.+-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_SORT_CODE = re.compile(r"\b(sort[ -]?code[^\n\d]{0,25})\d{2}([ -]?)\d{2}\2\d{2}(?!\d)", re.I)
_SORT_PAIR = re.compile(
    r"(?<![\w.-])\d{2}-\d{2}-\d{2}(?:[ \t,/]{1,3}|[^\n\d]{0,15}\b(?:acc(?:oun)?t|acc|a/c)\b[^\n\d]{0,15})"
    r"\d{4} ?\d{4}(?![\w-])",
    re.I,
)
_SORTED_ACCOUNT = re.compile(r"\b((?:acc(?:oun)?t|acc|a/c)[^\n\d]{0,25})\d{4} ?\d{4}(?!\d)", re.I)
# American banks; any account that is called one and has eight digits or more.
_ROUTING = re.compile(r"\b((?:routing|aba|blz|bsb)\b[^\n\d]{0,15})(?:\d{9}|\d{8}|\d{3}-\d{3})(?!\d)", re.I)
_ACCOUNT_WORDS = (
    r"account|acct|a/c|kontonummer|konto-?nr|konto nr|n° de compte|numéro de compte|número de cuenta|"
    r"numero di conto|rekeningnummer"
)
_NAMED_ACCOUNT = re.compile(
    rf"\b((?:{_ACCOUNT_WORDS})\.?[ \t]?"
    r"(?:(?:number|no|nr|\#)[.:\#]{0,2}[ \t]{0,3}(?:is |ist )?(?=\d{8})|"
    r"[:\#][ \t]{0,3}(?=\d{8})|[ \t]{0,3}(?=\d{9})))"
    r"\d{8,17}(?!\d)",
    re.I,
)
_BITLOCKER = re.compile(r"(?<!\d)(?:\d{6}-){7}\d{6}(?!\d)")
# The digit stands before what may not stand before it: the engine then looks at digits only. One line end may
# be within a number: clients wrap them.
_CARD = re.compile(r"[2-6](?<!\d\d)(?<!\d[.+-]\d)\d{3}(?:[ .\xa0‑–\n-]{0,2}\d){9,18}(?![^\W_])")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2} ?\d{2}(?:[ \xa0\n-]?[A-Z0-9]){11,31}", re.I)
_URL = re.compile(r"(?:\b[a-z][a-z0-9+.-]{1,15}://|\bwww\.)[^\s<>\"']{4,4000}", re.I)
_URL_SECRET = re.compile(
    r"[?&#;](?:[\w.-]{0,30}(?:token|secret|passw(?:or)?d|pwd|signature|credential|session|apikey|api_key|"
    r"auth(?!or)|otp|jwt|rlkey)"
    r"[\w-]{0,20}|sig|key|code|sid|hash|invite|ticket|pin|pass)=[^&\s]{4,}|//[^/\s:@]{0,100}:[^/\s@]{1,100}@"
    r"|//chat\.whatsapp\.com/\w|//discord\.gg/\w|//t\.me/(?:joinchat/|\+)\w|//we\.tl/\w|//1drv\.ms/\w",
    re.I,
)
# One run of letters and digits mixed tells a token from the title of an article: "3-ways-to-cook-beans".
_URL_TOKEN_SEGMENT = re.compile(
    r"[/=](?=[\w-]{0,100}?(?<![A-Za-z0-9])(?=[A-Za-z]{0,40}\d)(?=\d{0,40}[A-Za-z])[A-Za-z0-9]{8})"
    r"[A-Za-z0-9_-]{28,}(?=[/?&#.]|$)"
)
_URL_LOGIN_PATH = re.compile(
    r"/(?:invites?|invitations?|reset(?:-password)?|password-reset|verify|verification|confirm|activate|magic|"
    r"magic-link|login|signin|auth|token|accept)/(?=[\w-]{0,60}\d)[\w-]{8,}",
    re.I,
)
# Incoming webhooks: whoever knows the address may post (hooks.slack.com/services/T…/B…/…).
_URL_WEBHOOK = re.compile(
    r"//hooks\.slack\.com/\w|//discord(?:app)?\.com/api/webhooks/\w|/webhook/[\w-]{16}", re.I
)

_MIN_CARD_DIGITS = 13
# "code 482913" is one; "code 4711" must be said to be.
_MIN_BARE_CODE = 5
# Characters of the shortest key, and of a licence with its dashes.
_LONG = 16
_LICENCE_CHARS, _LICENCE_DASHES = 23, 3
# Substrings without which a pattern cannot match: finding them costs a hundredth of running it.
_BANK_HINTS = (
    "routing", "aba", "blz", "bsb", "acct", "a/c", "konto", "compte", "cuenta", "conto", "rekening",
)  # fmt: skip
_DIGIT = re.compile(r"\d")
_DIGITS = re.compile(r"\d\D?\d\D?\d\D?\d")
_SSN_HINT = re.compile(r"-\d\d-\d{4}")
_SORT_HINT = re.compile(r"-\d\d-\d\d[^\d-]")
_API_KEY_HINTS = (
    "sk-", "k_live_", "k_test_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox",
    "AKIA", "ASIA", "AIza", "ya29.", "hf_", "npm_", "pypi-", "SG.", "xapp-", "GOCSPX-", "whsec_",
    "AGE-SECRET-KEY-1", "dop_v1_", "shpat_", "eyJ", "glrt-", "key-", "-us", "EAAA", "secret_", "ntn_",
    "lin_api_", "ATATT3", "sl.", "hvs.", "gsk_", "dckr_pat_", "tskey-", "1//0", "Q~", ":AA",
)  # fmt: skip
_KEY_HINTS = ("key", "token", "secret")
_NAMED_KEY_HINT = re.compile(r"(?:key|token|secret)[\"']?\s{0,3}(?:is|[:=])")
_IBAN_HINT = re.compile(r"\d\d(?<=[A-Za-z]{2}\d\d)|\d\d(?<= \d\d)(?<=[A-Za-z]{2} \d\d)(?= \d{4} )")
# Every alternative begins with a letter: the engine then skips all others.
_CODE_HINT = re.compile(
    r"code|codice|código|kod|p\.i\.n|one[- ]time|otp\b(?<=\botp)|tan\b(?<=\btan)|tan\b(?<=\b[ims]tan)|"
    r"smstan|puk\b|2fa\b(?<=\b2fa)|"
    r"mfa\b(?<=\bmfa)|keys?\b|numbers?\b|pin(?![a-z])|pins\b"
)
# The longest word ("code de confirmation"), its gap and a value of which only the last character is a digit.
_CODE_WITH_DIGIT = re.compile(
    r"(?:code|codice|código|kod|otp|tan|puk|2fa|mfa|pin|key|number|password)[^\n]{0,60}\d"
)
_CODE_USED_HINT = re.compile(r"\d{5} (?:to|when|as|at|and|if|for|ein|pour|para|per)\b")
_CODE_FIRST_HINT = re.compile(r"\d (?:is|ist|est|es) ")


def redact(text: str) -> Redacted:
    """Return `text` with every secret replaced by a placeholder such as "[card number]"."""
    lowered = text.lower()
    some_digit = _DIGIT.search(text) is not None
    digits = some_digit and _DIGITS.search(text) is not None
    words = text.split()
    longest = max(map(len, words), default=0)
    long_token = longest >= _LONG
    hinted_password = passwords.may_hold_passwords(lowered)
    hinted_login = passwords.may_hold_login(text, lowered)
    if not (some_digit or long_token or hinted_password or hinted_login or "-----BEGIN" in text):
        return Redacted(text, 0, 0)
    counter = _Counter()
    if "-----BEGIN" in text:
        text = _replace_private_keys(_KEY_BEGIN, _KEY_END, text, counter)
    if "PuTTY-User-Key-File" in text:
        text = _replace_private_keys(_PUTTY_BEGIN, _PUTTY_END, text, counter)
    if "://" in text or "www." in lowered:
        text = counter.sub(_URL, _replace_url, text)
    if long_token:
        tokens = " ".join([word for word in words if len(word) >= _LONG])
        if any(hint in tokens for hint in _API_KEY_HINTS):
            text = counter.sub(_API_KEY, lambda match: "[API key]", text)
        if "bearer " in lowered or "basic " in lowered:
            text = counter.sub(_BEARER, lambda match: f"{match[1]} [API key]", text)
    if hinted_password:
        if some_digit:
            text, count, removed = passwords.replace_chosen(text)
            counter.count += count
            counter.removed_chars += removed
        text = passwords.replace_told(text, lowered, counter.sub)
    if hinted_login:
        text = passwords.replace_logins(text, counter.sub)
    if any(hint in lowered for hint in _KEY_HINTS):
        if _NAMED_KEY_HINT.search(lowered):
            text = counter.sub(_NAMED_KEY, lambda match: f"{match[1]}{match[2]}[API key]", text)
        if long_token:
            text = counter.sub(_BARE_KEY, lambda match: f"{match[1]}{match[2]}[API key]", text)
            if longest >= 32:
                text = counter.sub(_NEAR_KEY, _replace_near_key, text)
    if digits:
        if "sort" in lowered:
            text = _replace_sort_codes(text, counter)
        if _SORT_HINT.search(text):
            text = counter.sub(_SORT_PAIR, lambda match: "[account number]", text)
        if _SSN_HINT.search(text):
            text = counter.sub(_BARE_SSN, lambda match: "[ID number]", text)
        if "account" in lowered or any(hint in lowered for hint in _BANK_HINTS):
            text = counter.sub(_ROUTING, lambda match: f"{match[1]}[account number]", text)
            text = counter.sub(_NAMED_ACCOUNT, lambda match: f"{match[1]}[account number]", text)
        if _IBAN_HINT.search(text):
            text = counter.sub(_IBAN, _replace_iban, text)
        text = counter.sub(_CARD, _replace_card, text)
    if some_digit:
        if longest >= _LICENCE_CHARS and text.count("-") >= _LICENCE_DASHES:
            text = counter.sub(_BITLOCKER, lambda match: "[code]", text)
            text = counter.sub(_LICENCE, lambda match: "[API key]", text)
        if _CODE_HINT.search(lowered):
            text = counter.sub(_PIN, lambda match: f"{match[1]}{match[2]}[code]", text)
            if " pin " in lowered:
                text = counter.sub(_OWN_PIN, lambda match: f"{match[1]}[code]", text)
            text = counter.sub(_PIN_SAID, lambda match: f"{match[1]}{match[2]}[code]", text)
            if _CODE_WITH_DIGIT.search(lowered):
                text = counter.sub(_CODE, _replace_code, text)
                text = counter.sub(_CODE_COMPOUND, _replace_compound, text)
            if "code" in lowered:
                text = counter.sub(_CODE_SAID, _replace_said_code, text)
            if _CODE_FIRST_HINT.search(lowered):
                text = counter.sub(_CODE_FIRST, lambda match: "[code]", text)
        if digits and _CODE_USED_HINT.search(lowered):
            text = counter.sub(_CODE_USED, lambda match: f"{match[1]}[code]", text)
        if "cv" in lowered or "security code" in lowered:
            text = counter.sub(_CVV, lambda match: f"{match[1]}[code]", text)
        if "ssn" in lowered or "social security" in lowered:
            text = counter.sub(_SSN, lambda match: f"{match[1]}[ID number]", text)
    if longest >= 32:
        text = counter.sub(_LONG_TOKEN, lambda match: "[API key]", text)
    return Redacted(text, counter.count, counter.removed_chars)


class _Counter:
    """Counts the replacements that really changed something."""

    def __init__(self) -> None:
        self.count = 0
        self.removed_chars = 0

    def sub(self, pattern: re.Pattern[str], replace: Callable[[re.Match[str]], str], text: str) -> str:
        def once(match: re.Match[str]) -> str:
            new = replace(match)
            if new != match.group():
                self.count += 1
                self.removed_chars += len(match.group())
            return new

        return pattern.sub(once, text)


def _replace_private_keys(first: re.Pattern[str], last: re.Pattern[str], text: str, counter: _Counter) -> str:
    """Replace everything from a match of `first` to the next match of `last`."""
    parts: list[str] = []
    position = 0
    for begin in first.finditer(text):
        if begin.start() < position:
            continue
        end = last.search(text, begin.end())
        stop = end.end() if end else len(text)  # a key cut off by the client is still a key
        parts += [text[position : begin.start()], "[private key]"]
        counter.count += 1
        counter.removed_chars += stop - begin.start()
        position = stop
        if not end:
            break
    return "".join([*parts, text[position:]])


def _replace_url(match: re.Match[str]) -> str:
    url = match.group()
    patterns = (_URL_SECRET, _URL_TOKEN_SEGMENT, _URL_LOGIN_PATH, _URL_WEBHOOK)
    return "[link]" if any(pattern.search(url) for pattern in patterns) else url


def _replace_sort_codes(text: str, counter: _Counter) -> str:
    """Replace British sort codes, and accounts of eight digits where there was one."""
    found = counter.count
    text = counter.sub(_SORT_CODE, lambda match: f"{match[1]}[account number]", text)
    if counter.count == found:
        return text
    return counter.sub(_SORTED_ACCOUNT, lambda match: f"{match[1]}[account number]", text)


def _replace_near_key(match: re.Match[str]) -> str:
    value = match["value"]
    mixed = any(map(str.isupper, value)) and any(map(str.islower, value)) and any(map(str.isdigit, value))
    return f"{match['lead']}[API key]" if mixed and "://" not in match["lead"] else match.group()


def _replace_code(match: re.Match[str]) -> str:
    value, gap = match["value"], match["gap"]
    if not any(map(str.isdigit, value)) or "[" in gap:
        return match.group()
    told = _SAYS.search(gap) is not None
    if _REST_OF_PHONE.match(match.string, match.end()):
        return match.group()
    word = match["word"].lower()
    if word in _SHORT_WORDS and gap.strip(" \t:#") and not told:
        return match.group()  # "2FA is active for 1200 users"
    # "She got her MFA in 2019", "participant numbers rose to 1200"
    counted = _YEAR.fullmatch(value) or word.endswith(("number", "numbers", "keys"))
    return match.group() if counted and not told else f"{match['word']}{gap}[code]"


def _replace_compound(match: re.Match[str]) -> str:
    first = _LETTERS_BEFORE.search(match.string[max(0, match.start() - 20) : match.start()])
    opens = first is not None and first.group().lower() in _CODES_THAT_OPEN
    return _replace_code(match) if opens else match.group()


def _replace_said_code(match: re.Match[str]) -> str:
    value, gap, before = match["value"], match["gap"], match["before"] or ""
    if (before and before.strip(" -").lower() not in _CODES_THAT_OPEN) or not _CLAUSE_ENDS.match(
        match.string, match.end()
    ):
        return match.group()
    # "code 482913", but not "code 2024"
    if not _SAYS.search(gap) and not (value.isdigit() and len(value) >= _MIN_BARE_CODE):
        return match.group()
    return f"{before}{match['word']}{gap}[code]"


def _replace_card(match: re.Match[str]) -> str:
    """Replace the longest beginning that is a card's number: an expiry date or a CVV may follow it."""
    found = match.group()
    ends = [at + 1 for at, char in enumerate(found) if char.isdigit()]
    digits = [int(char) for char in found if char.isdigit()]
    for length in range(len(digits), _MIN_CARD_DIGITS - 1, -1):
        end = ends[length - 1]
        if end < len(found) and found[end].isdigit():
            continue  # within a run of digits
        if (
            found.count("\n", 0, end) <= 1
            and _is_card_length("".join(map(str, digits[:length])))
            and passes_luhn(digits[:length])
        ):
            return "[card number]" + found[end:]
    return found


def _is_card_length(digits: str) -> bool:
    """Tell whether an issuer makes cards of this beginning and length (ISO/IEC 7812, issuers' own ranges)."""
    length, two = len(digits), int(digits[:2])
    if digits[0] == "4":
        return length in (13, 16, 19)  # Visa
    if digits[0] == "6":
        return 16 <= length <= 19  # Discover, UnionPay, Maestro
    if two in (34, 37):
        return length == 15  # American Express
    if two in (30, 36, 38, 39):
        return 14 <= length <= 19  # Diners Club
    return length == 16 and (two == 35 or 51 <= two <= 55 or 22 <= two <= 27)  # JCB, Mastercard


def passes_luhn(digits: list[int]) -> bool:
    """Tell whether the last digit is the Luhn check digit (ISO/IEC 7812-1 annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        if place % 2:
            digit = digit * 2 - 9 if digit > 4 else digit * 2
        total += digit
    return total % 10 == 0


def _replace_iban(match: re.Match[str]) -> str:
    found = match.group()
    number, end = _iban_at_start(found)
    return "[account number]" + found[end:] if number else found


def find_ibans(text: str) -> list[tuple[str, int, int]]:
    """Return (number without spaces in capitals, start, end) of every valid IBAN in `text`."""
    found = [(match.start(), *_iban_at_start(match.group())) for match in _IBAN.finditer(text)]
    return [(number, start, start + end) for start, number, end in found if number]


def _iban_at_start(found: str) -> tuple[str, int]:
    """Return the IBAN that a match of `_IBAN` begins with, and where it ends; ("", 0) when there is none."""
    length = IBAN_LENGTHS.get(found[:2].upper())
    # Words behind the number may have been taken along: the country says where it ends.
    ends = [at + 1 for at, char in enumerate(found) if char.isalnum()]
    if length is None or len(ends) < length:
        return "", 0
    end = ends[length - 1]
    if (end < len(found) and found[end].isalnum()) or found.count("\n", 0, end) > 1:
        return "", 0
    number = "".join(filter(str.isalnum, found[:end])).upper()
    return (number, end) if passes_mod97(number) else ("", 0)


def passes_mod97(iban: str) -> bool:
    """Tell whether an IBAN without spaces is valid (ISO 13616, ISO 7064 mod 97-10)."""
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97 == 1
