"""Replace what must never be learnt: keys, passwords, card and account numbers, one-time codes, login links.

Numbers count only when their checksum holds (Luhn, ISO 7064 mod 97-10), so that phone and order numbers stay.
Every pattern has bounded repetition: linear time on any text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

PLACEHOLDERS = (
    "[private key]", "[API key]", "[password]", "[card number]", "[account number]", "[code]", "[link]",
    "[ID number]",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Redacted:
    """A text without its secrets; `removed_chars` is how much of the original they were."""

    text: str
    count: int
    removed_chars: int


_KEY_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----")
_KEY_END = re.compile(r"-----END (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----")

_API_KEY = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"sk-[A-Za-z0-9_-]{16,200}|[sprw]k_(?:live|test)_[A-Za-z0-9]{10,200}|gh[pousr]_[A-Za-z0-9]{20,255}"
    r"|github_pat_[A-Za-z0-9_]{20,255}|glpat-[A-Za-z0-9_-]{15,200}|xox[abeprs]-[A-Za-z0-9-]{10,200}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{30,60}|ya29\.[0-9A-Za-z_-]{20,200}|hf_[A-Za-z0-9]{20,100}"
    r"|npm_[A-Za-z0-9]{30,60}|pypi-[A-Za-z0-9_-]{30,250}|SG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,64}"
    r"|AGE-SECRET-KEY-1[0-9A-Z]{50,70}|dop_v1_[a-f0-9]{64}|shpat_[a-fA-F0-9]{32}"
    r"|eyJ[A-Za-z0-9_-]{10,2000}\.[A-Za-z0-9_-]{10,4000}(?:\.[A-Za-z0-9_-]{5,2000})?"
    r")(?![A-Za-z0-9])"
)
_BEARER = re.compile(r"\b(Bearer|Basic) (?=[A-Za-z0-9+/_.=-]*\d)[A-Za-z0-9+/_.=-]{16,500}")
_NAMED_KEY = re.compile(
    r"\b((?:api|access|secret|client|private|auth|session|signing|encryption|license|licence|product|"
    r"account)[ _-]?"
    r"(?:key|token|secret|id token)|secret|token|apikey)(\s{0,3}(?:is|[:=])\s{0,3}[\"'`]?)"
    r"(?=[A-Za-z0-9+/_.=-]{0,200}\d)[A-Za-z0-9+/_.=-]{12,500}",
    re.I,
)
# 32 and more characters with letters and digits mixed: a token of some service, or a hash.
_LONG_TOKEN = re.compile(
    r"(?<![\w/@.-])(?=[A-Za-z]{0,64}\d)(?=\d{0,64}[A-Za-z])[A-Za-z0-9]{32,512}(?![\w@-])"
)

_PASSWORD_WORDS = (
    r"pass ?word|pass ?phrase|passwd|pwd|kennwort|passwort|mot de passe|mdp|contraseña|clave|"
    r"parola d['’]ordine|"
    r"wachtwoord|senha|palavra-passe|lösenord|adgangskode|passord|salasana|hasło|heslo"
)
_PASSWORD = re.compile(
    r"\b(?P<word>(?:" + _PASSWORD_WORDS + r")s?)"
    r"(?P<gap>[ \t]{0,3}(?::|=|->|→)[ \t]{0,3}\n?[ \t]{0,3}"
    r"|(?:[ \t]{1,3}\w{1,12}){0,3}[ \t]{1,3}(?:is|was|ist|lautet|est|es|è|é|är|er|to)[ \t]{0,2}:?[ \t]{1,3})"
    r"(?P<value>\"[^\"\n]{3,80}\"|'[^'\n]{3,80}'|[^\s,;]{3,80})",
    re.I,
)
_PIN = re.compile(
    r"\b(PIN|P\.I\.N\.)((?:[ -]?(?:code|number|no\.?))?\s{0,3}(?:is|ist|est|es|[:=#])?\s{0,3})\d{4,8}\b"
)
_CODE = re.compile(
    r"\b(?P<word>otp|tan|2fa|mfa|one[- ]time (?:code|password|passcode)|"
    r"(?:verification|security|confirmation|access|login|log-in|sign-in|authentication|auth|activation|"
    r"unlock|gate|"
    r"alarm|door|participant|host|conference|pass)[ -]?(?:code|pin|key|number)s?|"
    r"bestätigungscode|sicherheitscode|zugangscode|code de (?:vérification|sécurité|confirmation)|"
    r"código de (?:verificación|seguridad|verificação|segurança)|codice di (?:verifica|sicurezza)|"
    r"verificatiecode|beveiligingscode|verifieringskod|säkerhetskod)"
    r"(?P<gap>[^\n\d]{0,25})(?P<value>\d{3}[ -]\d{3}|\d{4,10}|[A-Z0-9]{2,5}-[A-Z0-9]{2,5})(?![\w-]*\w)",
    re.I,
)
_SSN = re.compile(r"\b((?:ssn|social security)[^\n\d]{0,25})\d{3}[- ]?\d{2}[- ]?\d{4}\b", re.I)
_CARD = re.compile(r"(?<![\w.+-])[3-6]\d{3}(?:[ -]?\d){9,15}(?![\w-])")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?!\w)")
_URL = re.compile(r"(?:https?|ftp)://[^\s<>\"']{4,4000}")
_URL_SECRET = re.compile(
    r"[?&#;](?:[\w.-]{0,30}(?:token|secret|passw(?:or)?d|pwd|signature|credential|session|apikey|api_key|"
    r"auth|otp|jwt)"
    r"[\w-]{0,20}|sig|key|code|sid|hash|invite|ticket|pin)=[^&\s]{4,}|//[^/\s:@]{1,100}:[^/\s@]{1,100}@",
    re.I,
)
_URL_TOKEN_SEGMENT = re.compile(
    r"[/=](?=[\w-]{0,100}\d)(?=[\w-]{0,100}[A-Za-z])[A-Za-z0-9_-]{28,}(?=[/?&#.]|$)"
)

_DIGITS = re.compile(r"\d\D?\d\D?\d\D?\d")
# Substrings without which a pattern cannot match: finding them costs a hundredth of running it.
_PASSWORD_HINTS = (
    "pass", "pwd", "kennwort", "mdp", "contrase", "clave", "parola", "wachtwoord", "senha", "palavra",
    "lösenord",
    "adgangskode", "salasana", "hasło", "heslo",
)  # fmt: skip
_KEY_HINTS = ("key", "token", "secret")
_CODE_HINTS = (
    "code", "otp", "2fa", "mfa", "one-time", "one time", "tan", "codice", "código", "kod", "pin", "key",
    "number",
)  # fmt: skip


def redact(text: str) -> Redacted:
    """Return `text` with every secret replaced by a placeholder such as "[card number]"."""
    lowered = text.lower()
    digits = _DIGITS.search(text) is not None
    long_token = max(map(len, text.split()), default=0) >= 16
    hinted_password = any(hint in lowered for hint in _PASSWORD_HINTS)
    if not (digits or long_token or hinted_password):
        return Redacted(text, 0, 0)
    counter = _Counter()
    if "-----BEGIN" in text:
        text = _replace_private_keys(text, counter)
    if "://" in text:
        text = counter.sub(_URL, _replace_url, text)
    if long_token:
        text = counter.sub(_API_KEY, lambda match: "[API key]", text)
        if "bearer " in lowered or "basic " in lowered:
            text = counter.sub(_BEARER, lambda match: f"{match[1]} [API key]", text)
    if hinted_password:
        text = counter.sub(_PASSWORD, _replace_password, text)
    if any(hint in lowered for hint in _KEY_HINTS):
        text = counter.sub(_NAMED_KEY, lambda match: f"{match[1]}{match[2]}[API key]", text)
    if digits:
        text = counter.sub(_IBAN, _replace_iban, text)
        text = counter.sub(_CARD, _replace_card, text)
        if any(hint in lowered for hint in _CODE_HINTS):
            text = counter.sub(_PIN, lambda match: f"{match[1]}{match[2]}[code]", text)
            text = counter.sub(_CODE, _replace_code, text)
        if "ssn" in lowered or "social security" in lowered:
            text = counter.sub(_SSN, lambda match: f"{match[1]}[ID number]", text)
    if long_token:
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


def _replace_private_keys(text: str, counter: _Counter) -> str:
    parts: list[str] = []
    position = 0
    for begin in _KEY_BEGIN.finditer(text):
        if begin.start() < position:
            continue
        end = _KEY_END.search(text, begin.end())
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
    if _URL_SECRET.search(url) or _URL_TOKEN_SEGMENT.search(url):
        return "[link]"
    return url


def _replace_password(match: re.Match[str]) -> str:
    value, gap = match["value"], match["gap"]
    if value.startswith("["):
        return match.group()
    bare = value.strip("\"'").rstrip(".!?)")
    explicit = any(sign in gap for sign in ":=>→")
    # "the password is required" is a sentence; "the password is Sommer24" is not.
    looks_chosen = any(map(str.isdigit, bare)) or any(
        not char.isalnum() and char not in "-'’" for char in bare
    )
    mixed_case = any(map(str.isupper, bare[1:])) and any(map(str.islower, bare))
    if explicit or looks_chosen or mixed_case or value[0] in "\"'":
        return f"{match['word']}{gap}[password]"
    return match.group()


def _replace_code(match: re.Match[str]) -> str:
    if not any(map(str.isdigit, match["value"])) or "[" in match["gap"]:
        return match.group()
    return f"{match['word']}{match['gap']}[code]"


def _replace_card(match: re.Match[str]) -> str:
    digits = [int(char) for char in match.group() if char.isdigit()]
    return "[card number]" if 13 <= len(digits) <= 19 and passes_luhn(digits) else match.group()


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
    # An IBAN has 15-34 characters; a word in capitals behind it may have been taken along.
    ends = [at + 1 for at, char in enumerate(found) if char != " "]
    for length in range(min(34, len(ends)), 14, -1):
        end = ends[length - 1]
        if end < len(found) and found[end] != " ":
            continue
        if passes_mod97(found[:end].replace(" ", "")):
            return "[account number]" + found[end:]
    return found


def passes_mod97(iban: str) -> bool:
    """Tell whether an IBAN without spaces is valid (ISO 13616, ISO 7064 mod 97-10)."""
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97 == 1
