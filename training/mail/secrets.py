"""Replace what must never be learnt: keys, passwords, card and account numbers, one-time codes, login links.

Numbers count only when their checksum holds (Luhn, ISO 7064 mod 97-10) and issuer or country use their
length, so that phone and order numbers stay; those without one (American social security, British accounts)
count in their own grouping or by their name. A word that may be a password counts only when the sentence says
that it is one, or when no person would write it as a word. Linear time on any text: repetition in patterns is
bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

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
    r"(?=[A-Za-z]{0,64}\d)(?=\d{0,64}[A-Za-z])[A-Za-z0-9]{16,512}(?![\w@-])",
    re.I,
)
# 32 and more characters with letters and digits mixed: a token of some service, or a hash.
_LONG_TOKEN = re.compile(
    r"(?<![\w/@.-])(?=[A-Za-z]{0,64}\d)(?=\d{0,64}[A-Za-z])[A-Za-z0-9]{32,512}(?![\w@-])"
)

_PASSWORD_WORDS = (
    r"pass[ -]?word|pass[ -]?phrase|passwd|pwd|pw|kennwort|passwort|mot de passe|mdp|contraseña|clave|"
    r"parola d['’]ordine|"
    r"wachtwoord|senha|palavra-passe|lösenord|adgangskode|passord|salasana|hasło|heslo"
)
_PASSWORD = re.compile(
    r"(?<![^\W_])(?P<word>(?:" + _PASSWORD_WORDS + r")s?)(?!\w)"
    r"(?P<gap>[\"']?[ \t\xa0]{0,3}(?::|=|->|→|#:?)[ \t\xa0]{0,3}\n?[ \t\xa0]{0,3}"
    r"|(?:[ \t]{1,3}\w{1,12}){0,3}[ \t]{1,3}(?:is|was|ist|lautet|est|es|è|é|är|er|to)[ \t]{0,2}:?[ \t]{1,3}"
    # A line of its own below "password", with a digit, and nothing else on it.
    r"|[ \t]{0,3}\n{1,2}[ \t]{0,3}(?=[^\s,;\d]{0,80}\d[^\s,;]{0,80}[ \t]{0,3}(?:\n|$))"
    r"|[ \t]{1,3}(?:[-–—|/][ \t]{1,3})?)"
    r"(?P<value>\"[^\"\n]{3,80}\"|'[^'\n]{3,80}'|[^\s,;]{3,80})",
    re.I,
)
# "Password: correct horse battery staple": letters alone, to the end of the line or clause.
_PASSPHRASE = re.compile(
    r"(?<![^\W_])(?P<word>(?:" + _PASSWORD_WORDS + r"))(?P<gap>[ \t\xa0]{0,3}[:=][ \t\xa0]{0,3})"
    r"(?P<value>[^\W\d_]{2,20}(?:[ \t][^\W\d_]{2,20}){1,7})(?=[,;.!]|[ \t]{0,3}(?:\n|$))",
    re.I,
)
# "pass" alone is a word of many uses: the thing that is opened stands before it, or nothing on its line.
_PASS = re.compile(
    r"(?P<word>(?:^|\b(?:temporary|temp|new|old|my|your|the|login|user|guest|admin|root|wifi|wi-fi|mail|email|"
    r"vpn) )pass)(?P<gap>[ \t]{0,3}[:=][ \t]{0,3})(?P<value>[^\s,;]{5,80})",
    re.I | re.M,
)
_LOGIN_PAIR = re.compile(
    r"\b((?:log-?in|credentials|zugangsdaten|anmeldedaten|identifiants|user(?:name)?)"
    r"(?:[ \t]{0,2}:|[^\n/:.]{0,60}?[ \t](?:is|are|ist|lautet)[ \t])"
    r"[ \t]{0,3}[^\s/]{2,80}[ \t]{0,2}/[ \t]{0,2})(?P<value>[^\s,;/]{4,80})",
    re.I,
)
_PIN = re.compile(
    r"\b(PIN|P\.I\.N\.)((?:[ -]?(?:code|number|no\.?))?\s{0,3}(?:is|ist|est|es|[:=#])?\s{0,3})\d{4,8}\b"
)
_OWN_PIN = re.compile(
    r"\b((?:my|your|his|her|our|their|new|card|bank|atm|sim|phone|door|alarm) pin(?: code| number)? )"
    r"\d{4,8}\b",
    re.I,
)
_PIN_SAID = re.compile(
    r"\b(pin)((?:[ -]?(?:code|number|no\.?))?\s{0,3}(?:is|ist|est|es|[:=]|#:?)\s{0,3})"
    r"(?:\d{3}-\d{4}|\d{4,8})\b",
    re.I,
)
_CODE = re.compile(
    r"\b(?P<word>otp|tan|2fa|mfa|one[- ]time (?:code|password|passcode)|"
    r"(?:verification|security|confirmation|access|login|log-in|sign-in|authentication|auth|activation|"
    r"unlock|gate|"
    r"alarm|door|participant|host|conference|pass)[ -]?(?:code|pin|key|number)s?|"
    r"bestätigungscode|sicherheitscode|zugangscode|code de (?:vérification|sécurité|confirmation)|"
    r"código de (?:verificación|seguridad|verificação|segurança)|codice di (?:verifica|sicurezza)|"
    r"verificatiecode|beveiligingscode|verifieringskod|säkerhetskod)(?!\w)"
    r"(?P<gap>[^\n\d]{0,25})(?P<value>\d{3}[ -]\d{3}|\d{4,10}|[A-Z0-9]{2,5}-[A-Z0-9]{2,5})(?![\w-]*\w)",
    re.I,
)
# "zip code: 77046" and "tax code: 4590" open nothing.
_CODE_SAID = re.compile(
    r"(?<!\bzip )(?<!\barea )(?<!\btax )(?<!\bpostal )(?<!\bcountry )(?<!\bdress )(?<!\bsource )(?<!\bcost )"
    r"\b(?P<word>code)(?P<gap>[ \t\xa0]{0,2}(?::|=|is|lautet|est|es)[ \t\xa0]{0,3}\n{0,2})"
    r"(?P<value>\d{3}[ -]\d{3}|\d{4,10}|(?=[A-Z]{0,15}\d)[A-Z0-9]{5,16})(?![\w-]*\w)",
    re.I,
)
_CODE_FIRST = re.compile(
    r"(?<![\w.,-])(?:[A-Z]-)?(?:\d{3}[ -]\d{3}|\d{4,8})"
    r"(?= (?:is|ist|est|es) (?:your|the|my|ihr|dein|votre|tu|su) [\w -]{0,30}"
    r"\b(?:\w{0,20}code|código|pin|tan)\b)",
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
# The digit stands before what may not stand before it: the engine then looks at digits only.
_CARD = re.compile(r"[2-6](?<![\w.+-]\d)\d{3}(?:[ .\xa0-]?\d){9,15}(?![\w-])")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?:[ \xa0-]?[A-Z0-9]){11,31}", re.I)
_URL = re.compile(r"(?:\b[a-z][a-z0-9+.-]{1,15}://|\bwww\.)[^\s<>\"']{4,4000}", re.I)
_URL_SECRET = re.compile(
    r"[?&#;](?:[\w.-]{0,30}(?:token|secret|passw(?:or)?d|pwd|signature|credential|session|apikey|api_key|"
    r"auth|otp|jwt)"
    r"[\w-]{0,20}|sig|key|code|sid|hash|invite|ticket|pin)=[^&\s]{4,}|//[^/\s:@]{1,100}:[^/\s@]{1,100}@",
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

# What a password is said to be when it is not told: "the password is wrong", "needed", "missing".
_SAID_OF_PASSWORDS = """
    a about above active already also always an and any as at available bad being below blank by case common
    confidential correct default different down due easy either empty enough fine for from good gone hard here
    hers his how important in incorrect invalid it its just kept known less long longer lost made mandatory
    mine more my never new no none not now null obvious off ok okay old on one only open optional our ours out
    over poor private public ready right safe same secret secure set shared short simple so still strong such
    sure temporary that the their theirs then there these this those to too unique unknown up valid very via
    visible weak what when where which why with wrong your yours
"""
_NO_PASSWORDS = frozenset(_SAID_OF_PASSWORDS.split())
_SAID_ENDINGS = ("ed", "en", "ing", "able", "ible", "ly", "ary", "sent", "sensitive")
_CLAUSE_ENDS = re.compile(r"[ \t]{0,3}(?:[\n,;)]|$|(?:and|but|or|so|if|until|for|on) )")
# With one of these a line behind "password:" is a sentence and no phrase.
_IN_SENTENCES = """
    am and are ask be been below by call can follows from has have if is let me need or please see sent them
    then to was we when will with you your
    bitte et ist mit och oder ou und y
"""
_SENTENCE_WORDS = frozenset(_IN_SENTENCES.split())
_DIGIT = re.compile(r"\d")
_DIGITS = re.compile(r"\d\D?\d\D?\d\D?\d")
# Substrings without which a pattern cannot match: finding them costs a hundredth of running it.
_PASSWORD_HINTS = (
    "pass", "pw", "kennwort", "mdp", "contrase", "clave", "parola", "wachtwoord", "senha", "palavra",
    "lösenord",
    "adgangskode", "salasana", "hasło", "heslo",
)  # fmt: skip
_PASS_HINT, _SSN_HINT = re.compile(r"pass[ \t]{0,3}[:=]"), re.compile(r"-\d\d-\d{4}")
_SORT_HINT = re.compile(r"-\d\d-\d\d[^\d-]")
_LOGIN_HINTS = ("login", "log-in", "credentials", "zugangsdaten", "anmeldedaten", "identifiants", "user")
_PASSPHRASE_HINT = re.compile(rf"(?:{'|'.join(_PASSWORD_HINTS)})[^\n:=]{{0,16}}[:=]")
_API_KEY_HINTS = (
    "sk-", "k_live_", "k_test_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox",
    "AKIA", "ASIA", "AIza", "ya29.", "hf_", "npm_", "pypi-", "SG.", "xapp-", "GOCSPX-", "whsec_",
    "AGE-SECRET-KEY-1", "dop_v1_", "shpat_", "eyJ",
)  # fmt: skip
_KEY_HINTS = ("key", "token", "secret")
_NAMED_KEY_HINT = re.compile(r"(?:key|token|secret)[\"']?\s{0,3}(?:is|[:=])")
_IBAN_HINT = re.compile(r"\d\d(?<=[A-Za-z]{2}\d\d)")
# Every alternative begins with a letter: the engine then skips all others.
_CODE_HINT = re.compile(
    r"code|codice|código|kod|p\.i\.n|one[- ]time|otp\b(?<=\botp)|tan\b(?<=\btan)|2fa\b(?<=\b2fa)|"
    r"mfa\b(?<=\bmfa)|keys?\b|numbers?\b|pin(?![a-z])|pins\b"
)
# The longest word ("code de confirmation"), its gap and a value of which only the last character is a digit.
_CODE_WITH_DIGIT = re.compile(
    r"(?:code|codice|código|kod|otp|tan|2fa|mfa|pin|key|number|password)[^\n]{0,60}\d"
)
_CODE_FIRST_HINT = re.compile(r"\d (?:is|ist|est|es) ")


def redact(text: str) -> Redacted:
    """Return `text` with every secret replaced by a placeholder such as "[card number]"."""
    lowered = text.lower()
    some_digit = _DIGIT.search(text) is not None
    digits = some_digit and _DIGITS.search(text) is not None
    longest = max(map(len, text.split()), default=0)
    long_token = longest >= 16
    hinted_password = any(hint in lowered for hint in _PASSWORD_HINTS)
    hinted_login = "/" in text and any(hint in lowered for hint in _LOGIN_HINTS)
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
        if any(hint in text for hint in _API_KEY_HINTS):
            text = counter.sub(_API_KEY, lambda match: "[API key]", text)
        if "bearer " in lowered or "basic " in lowered:
            text = counter.sub(_BEARER, lambda match: f"{match[1]} [API key]", text)
    if hinted_password:
        if _PASSPHRASE_HINT.search(lowered):
            text = counter.sub(_PASSPHRASE, _replace_passphrase, text)
        if _PASS_HINT.search(lowered):
            text = counter.sub(_PASS, _replace_pass, text)
        text = counter.sub(_PASSWORD, _replace_password, text)
    if hinted_login:
        text = counter.sub(_LOGIN_PAIR, _replace_login, text)
    if any(hint in lowered for hint in _KEY_HINTS):
        if _NAMED_KEY_HINT.search(lowered):
            text = counter.sub(_NAMED_KEY, lambda match: f"{match[1]}{match[2]}[API key]", text)
        if long_token:
            text = counter.sub(_BARE_KEY, lambda match: f"{match[1]}{match[2]}[API key]", text)
    if digits:
        if "sort" in lowered:
            text = _replace_sort_codes(text, counter)
        if _SORT_HINT.search(text):
            text = counter.sub(_SORT_PAIR, lambda match: "[account number]", text)
        if _SSN_HINT.search(text):
            text = counter.sub(_BARE_SSN, lambda match: "[ID number]", text)
        if _IBAN_HINT.search(text):
            text = counter.sub(_IBAN, _replace_iban, text)
        text = counter.sub(_CARD, _replace_card, text)
    if some_digit:
        if _CODE_HINT.search(lowered):
            text = counter.sub(_PIN, lambda match: f"{match[1]}{match[2]}[code]", text)
            if " pin " in lowered:
                text = counter.sub(_OWN_PIN, lambda match: f"{match[1]}[code]", text)
            text = counter.sub(_PIN_SAID, lambda match: f"{match[1]}{match[2]}[code]", text)
            if _CODE_WITH_DIGIT.search(lowered):
                text = counter.sub(_CODE, _replace_code, text)
            if "code" in lowered:
                text = counter.sub(_CODE_SAID, _replace_code, text)
            if _CODE_FIRST_HINT.search(lowered):
                text = counter.sub(_CODE_FIRST, lambda match: "[code]", text)
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


def _replace_password(match: re.Match[str]) -> str:
    value, gap = match["value"], match["gap"]
    if value.startswith("["):
        return match.group()
    bare = value.strip("\"'").rstrip(".!?)")
    has_digit, has_letter = any(map(str.isdigit, bare)), any(map(str.isalpha, bare))
    if not gap.strip(" \t\n-–—|/"):
        # "password hunter2" names one; "password protected" and "password-reset" do not.
        named = has_digit and has_letter and len(bare) >= 6
        return f"{match['word']}{gap}[password]" if named else match.group()
    explicit = any(sign in gap for sign in ":=>→#")
    # "the password is required" is a sentence; "the password is Sommer24" is not.
    looks_chosen = has_digit or any(not char.isalnum() and char not in "-'’" for char in bare)
    mixed_case = any(map(str.isupper, bare[1:])) and any(map(str.islower, bare))
    following = match.string[match.end() : match.end() + 10]
    told = gap.strip(" \t:").lower()
    plain = told == "lautet" or (told in ("is", "was") and _is_told(value, following))
    if explicit or looks_chosen or mixed_case or plain or value[0] in "\"'":
        return f"{match['word']}{gap}[password]"
    return match.group()


def _is_told(value: str, following: str) -> bool:
    """Tell whether the plain word behind "the password is" is the password: the clause ends, and says nothing
    of it."""
    word = value.rstrip(".!?)").lower()
    ends = len(word) < len(value) or _CLAUSE_ENDS.match(following) is not None
    return ends and word.isalpha() and word not in _NO_PASSWORDS and not word.endswith(_SAID_ENDINGS)


def _replace_passphrase(match: re.Match[str]) -> str:
    if not _SENTENCE_WORDS.isdisjoint(match["value"].lower().split()):
        return match.group()
    return f"{match['word']}{match['gap']}[password]"


def _replace_pass(match: re.Match[str]) -> str:
    value = match["value"].rstrip(".!?)")
    marked = any(not char.isalnum() and char not in "-'’/.:" for char in value)
    chosen = any(map(str.isalpha, value)) and (marked or any(map(str.isdigit, value)))
    return f"{match['word']}{match['gap']}[password]" if chosen and value[0] != "[" else match.group()


def _replace_sort_codes(text: str, counter: _Counter) -> str:
    """Replace British sort codes, and accounts of eight digits where there was one."""
    found = counter.count
    text = counter.sub(_SORT_CODE, lambda match: f"{match[1]}[account number]", text)
    if counter.count == found:
        return text
    return counter.sub(_SORTED_ACCOUNT, lambda match: f"{match[1]}[account number]", text)


def _replace_login(match: re.Match[str]) -> str:
    value = match["value"]
    chosen = any(map(str.isdigit, value)) or any(not char.isalnum() for char in value.rstrip(".!?)"))
    return f"{match[1]}[password]" if chosen and "[" not in value else match.group()


def _replace_code(match: re.Match[str]) -> str:
    if not any(map(str.isdigit, match["value"])) or "[" in match["gap"]:
        return match.group()
    return f"{match['word']}{match['gap']}[code]"


def _replace_card(match: re.Match[str]) -> str:
    digits = "".join(filter(str.isdigit, match.group()))
    known = _is_card_length(digits) and passes_luhn([int(digit) for digit in digits])
    return "[card number]" if known else match.group()


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
    if end < len(found) and found[end].isalnum():
        return "", 0
    number = "".join(filter(str.isalnum, found[:end])).upper()
    return (number, end) if passes_mod97(number) else ("", 0)


def passes_mod97(iban: str) -> bool:
    """Tell whether an IBAN without spaces is valid (ISO 13616, ISO 7064 mod 97-10)."""
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97 == 1
