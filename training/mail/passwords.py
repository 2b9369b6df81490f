"""Find passwords: what a sentence or a line says to be one, or what nobody would write as a word beside one.

Two ways, because each misses what the other finds. By grammar: "password: x", "the password is x", whatever x
is. By form: a word of letters and digits mixed ("harbour22") in the same sentence as the word "password",
whatever stands between, before it or behind it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

# "Gastpasswort" is one, too.
_WITHIN_WORDS = r"pass[ -]?word|passwort|passwörter|kennwort|kennwörter"
_WHOLE_WORDS = (
    r"pass[ -]?phrase|pass[ -]?code|passwd|pwd|pw|p/w|pswd|mots? de passe|mdp|contraseña|contrasena|clave|"
    r"parola d['’]ordine|wachtwoord(?:en)?|senha|palavras?-passe|lösenord|adgangskode|passord|salasana|hasło|"
    r"heslo|(?:wi-?fi|wlan|wpa2?|network|router|netzwerk)[ -]?(?:key|schlüssel|schluessel)|"
    r"(?:clé|code|chiave|clave) wi-?fi|пароль|密码|密碼|パスワード"
)
_WORD = rf"(?:(?:{_WITHIN_WORDS})|(?<![^\W_])(?:{_WHOLE_WORDS}))"
# Small letters without which no pattern but that of logins can match.
_STEMS = (
    "kennw", "mdp", "contrase", "clave", "parola", "wachtwoord", "senha", "palavra", "adgangskode",
    "salasana", "heslo", "wpa", "code wi", "chiave",
)  # fmt: skip
_WIDER_STEMS = ("lösenord", "hasło", "schlüssel", "clé wi", "пароль", "密码", "密碼", "パスワード")
# "passed", "Chopwell" and "the key" are none.
_AMBIGUOUS = re.compile(
    r"pass(?:[ -]?w|[ -]?ph|[ -]?code|ord|e\b|[ \t]{0,3}[:=])|p/?wd?(?:\b|_|s\b)|(?:ww|psw)[ \t]{0,3}[:=]|"
    r"(?:fi|network|router)[ -]?key"
)


def may_hold_passwords(lowered: str) -> bool:
    """Tell whether `replace_chosen` or `replace_told` can find any: a hundredth of what they cost."""
    if any(stem in lowered for stem in _STEMS):
        return True
    if not lowered.isascii() and any(stem in lowered for stem in _WIDER_STEMS):
        return True
    hinted = "pass" in lowered or "pw" in lowered or "p/w" in lowered or "psw" in lowered or "key" in lowered
    return (hinted or "ww" in lowered) and _AMBIGUOUS.search(lowered) is not None


_BLANK = r"[ \t\xa0]"
_SAYS = r"is|was|ist|lautet|heißt|est|es|è|é|är|er"
_PASSWORD = re.compile(
    rf"(?P<word>{_WORD}s?)(?!\w)"
    rf"(?P<gap>(?:[ \t]\([^()\n]{{1,30}}\))?[\"'*_]{{0,3}}{_BLANK}{{0,3}}(?::|：|=|->|→|#:?)[*_]{{0,2}}"
    rf"{_BLANK}{{0,3}}\n?{_BLANK}{{0,3}}"
    rf"|(?:{_BLANK}{{1,3}}\w{{1,12}}){{0,5}}?{_BLANK}{{1,3}}(?:{_SAYS}|to){_BLANK}{{0,2}}:?{_BLANK}{{1,3}}"
    # A line of its own below "password", with a digit, and nothing else on it.
    r"|[ \t]{0,3}\n{1,2}[ \t]{0,3}(?=[^\s,;\d]{0,80}\d[^\s,;]{0,80}[ \t]{0,3}(?:\n|$))"
    r"|[ \t]{1,3}(?:[-–—|/][ \t]{1,3})?)"
    r"(?P<value>\"[^\"\n]{3,80}\"|'[^'\n]{3,80}'|«[^»\n]{3,80}»|“[^”\n]{3,80}”|[^\s,;]{3,80})",
    re.I,
)
# "Password: correct horse battery staple": letters alone, to the end of the line or clause.
_PASSPHRASE = re.compile(
    rf"(?P<word>{_WORD})(?P<gap>[*_]{{0,2}}{_BLANK}{{0,3}}[:=][*_]{{0,2}}{_BLANK}{{0,3}})"
    r"(?P<value>[^\W\d_]{2,20}(?:[ \t][^\W\d_]{2,20}){1,7})(?=[,;.!]|[ \t]{0,3}(?:\n|$))",
    re.I,
)
# "pass" alone is a word of many uses: the thing that is opened stands before it, or nothing on its line.
_PASS = re.compile(
    r"(?P<word>(?:^[ \t]{0,8}|\b(?:temporary|temp|new|old|my|your|the|login|user|guest|admin|root|wifi|"
    r"wi-fi|mail|email|vpn) )pass|(?<!\w)(?:ww|psw))(?P<gap>[ \t]{0,3}[:=][ \t]{0,3})"
    r"(?P<value>[^\s,;]{5,80})",
    re.I | re.M,
)
# No blanks between words there.
_CJK = re.compile(r"(?P<word>密码|密碼|パスワード)(?P<gap>[是は为為:：\s]{0,3})(?P<value>[!-~]{4,40})")
_LOGIN_PAIR = re.compile(
    r"\b(?P<word>(?:log-?in|credentials|creds|zugangsdaten|anmeldedaten|identifiants|wi-?fi|wlan|"
    r"user(?:name)?(?:/pass(?:word)?)?)"
    r"(?:[ \t]{0,2}:|[^\n/:.]{0,60}?[ \t](?:is|are|ist|lautet)[ \t])"
    r"[ \t]{0,3}[^\s/]{2,80}[ \t]{0,2}[/:][ \t]{0,2})(?P<value>[^\s,;/:]{4,80})",
    re.I,
)
_LOGIN_HINTS = (
    "login", "log-in", "cred", "zugangsdaten", "anmeldedaten", "identifiants", "user", "wifi",
    "wi-fi", "wlan",
)  # fmt: skip
_PASS_HINT = re.compile(r"(?:pass|ww|psw)[ \t]{0,3}[:=]")

# ---- by form -----------------------------------------------------------------------------------------

_WORD_ALONE = re.compile(rf"{_WORD}s?(?!\w)", re.I)
_MAX_WINDOW = 90
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
_LINE_BELOW = re.compile(
    rf"[\"'*_)]{{0,3}}{_BLANK}{{0,3}}(?:is|are|ist)?{_BLANK}?[:：]?[*_]{{0,2}}{_BLANK}{{0,3}}\n{{1,2}}"
)
_TOKEN = re.compile(r"[^\s,;\"'«»“”()\[\]]{5,80}")
_AS_PASSWORD = re.compile(
    rf"{_BLANK}(?:as|is|was|ist|est|es|è|é|als|comme|como|come){_BLANK}"
    rf"(?:[^\W\d_]{{1,12}}{_BLANK}){{0,3}}{_WORD}(?!\w)",
    re.I,
)
_MIN_CHOSEN = 6
# Letters and digits, and no secret: 16-character, 12th, 10:30am, 2024-05-01T10, v2.3.1, anna@x.example,
# 1Password.
_NOT_CHOSEN = re.compile(
    r"\d+(?:st|nd|rd|th|pm|am|h|k|kb|mb|gb|tb|px|cm|mm|km|kg|min|sec|usd|eur|er|te[nrs]?|ème|º|ª)"
    r"|(?:office|windows|win|sha|md|keepass|fritz!?box|iphone|ipad|galaxy|android|ios|macos|python|base|utf|http|"
    r"oauth|php|web|exchange|sql)-?\d{1,4}\w?"
    r"|\d+-[^\W\d_]+|v?\d+(?:\.\d+)+[a-z]?|\d{1,2}:\d{2}.*|\d{1,4}[-/.]\S*[-/.]\S*"
    r"|\S*@\S*|\S*://\S*|www\.\S*|\S*pass\S*",
    re.I,
)


def is_chosen(token: str) -> bool:
    """Tell whether letters and digits are mixed as in a password and in no word, date, version or address."""
    bare = token.strip(".!?:*_’'<>|")
    letters, digits = sum(map(str.isalpha, bare)), sum(map(str.isdigit, bare))
    return len(bare) >= _MIN_CHOSEN and letters >= 2 and digits >= 1 and _NOT_CHOSEN.fullmatch(bare) is None


def replace_chosen(text: str) -> tuple[str, int, int]:
    """Replace what looks chosen in the sentence of a password word; returns (text, count, characters)."""
    spans = sorted(set(_near_words(text)))
    if not spans:
        return text, 0, 0
    parts, position, removed = [], 0, 0
    for start, end in spans:
        parts += [text[position:start], "[password]"]
        position, removed = end, removed + end - start
    return "".join([*parts, text[position:]]), len(spans), removed


def _near_words(text: str) -> Iterator[tuple[int, int]]:
    done = 0
    for word in _WORD_ALONE.finditer(text):
        start = max(word.end(), done)
        below = _LINE_BELOW.match(text, word.end())
        end = min(len(text), (below.end() if below else word.end()) + _MAX_WINDOW)
        closed = _SENTENCE_END.search(text, below.end() if below else word.end(), end)
        end = closed.start() if closed else end
        # Where a word begins decides: cut at the end of the window, the rest of a password would stay.
        for token in _TOKEN.finditer(text, start):
            if token.start() >= end:
                break
            if is_chosen(token.group()):
                yield _without_marks(token)
            done = token.end()
    for said in _AS_PASSWORD.finditer(text):
        before = text[max(0, said.start() - 81) : said.start()].split()
        if before and len(before[-1]) <= 80 and is_chosen(before[-1]) and "[" not in before[-1]:
            last = _TOKEN.search(text, said.start() - len(before[-1]), said.start())
            if last:
                yield _without_marks(last)


def _without_marks(token: re.Match[str]) -> tuple[int, int]:
    """Return where a token stands without the marks of the sentence around it; "!" may be part of it."""
    value = token.group()
    left = len(value) - len(value.lstrip("*_:<|"))
    return token.start() + left, token.start() + len(value.rstrip(".?:*_>|"))


# ---- by grammar --------------------------------------------------------------------------------------

# What a password is said to be when it is not told: "the password is wrong", "needed", "missing".
_SAID_OF_PASSWORDS = """
    a about above active already also always an and any as at available bad being below blank by case
    common confidential correct default different down due easy either empty enough fine for from good
    gone hard here hers his how important in incorrect invalid it its just kept known less long longer
    lost made mandatory rubbish nonsense history crap awful silly stupid ridiculous useless nice dead
    great mine more my never new no none not now null obvious off ok okay old on one only open optional
    our ours out over poor private public ready right safe same secret secure see separately set shared
    short simple so still strong such sure temporary that the their theirs then there these this those
    to too unique unknown up valid very via visible weak what when where which why with wrong your yours
"""
# "Password: see below"
_REFERS = frozenset(
    {
        *("see", "ask", "same", "none", "tbd", "n/a", "separately"),
        *("siehe", "folgt", "kommt", "gleich", "keins", "separat", "unten", "voir", "ver", "vedi", "zie"),
    }
)
_NO_PASSWORDS = frozenset(_SAID_OF_PASSWORDS.split())
_SAID_ENDINGS = ("ed", "en", "ing", "able", "ible", "ly", "ary", "sent", "sensitive")
_CLAUSE_ENDS = re.compile(
    r"[ \t]{0,3}(?:[\n,;()]|$|(?:and|but|or|so|if|until|for|on|und|oder|et|ou|y|e|en) )"
)
# With one of these a line behind "password:" is a sentence and no phrase.
_IN_SENTENCES = """
    a all always am an and any are as ask at be been below by call can do each every expires follows for
    from has have i if in is it its let may me must need never no nobody not of on once or please see
    sent should stop that the them then these they this those to twice was we when will with you your
    als ab an auf bei bis bitte das dem den der die dies ein eine es für im ist jetzt läuft mit nicht
    nie oder per und vom von wie wird zum zur au aux avec dans de des du en est et il la le les ne nos
    ou par pas pensez pour que qui sur un une vos y à a basta che chiedi con da del della di e hay il in
    la lo los las mi no non o os para per por que se si su tens tu un una uno dat de die dit een het ik
    is je kan kies met niet nog of om op te van voor wordt zelf det du en ett för har i inte och på som
    till
"""
_SENTENCE_WORDS = frozenset(_IN_SENTENCES.split())
_TELLS = frozenset(_SAYS.split("|"))
_OF_WHAT = frozenset(
    {
        *("for", "to", "of", "on", "in", "at", "zum", "zur", "für", "von", "vom"),
        *("de", "du", "del", "da", "do", "della", "per", "para", "van", "voor"),
    }
)
_TELLS_PLAINLY = frozenset({"is", "was", "lautet", "heißt"})

Substitute = Callable[[re.Pattern[str], Callable[[re.Match[str]], str], str], str]


def replace_told(text: str, lowered: str, substitute: Substitute) -> str:
    """Replace what the grammar says to be a password. `lowered` is `text` in small letters."""
    if ":" in text or "=" in text:
        text = substitute(_PASSPHRASE, _replace_passphrase, text)
        if _PASS_HINT.search(lowered):
            text = substitute(_PASS, _replace_pass, text)
    if not text.isascii():
        text = substitute(_CJK, lambda found: f"{found['word']}{found['gap']}[password]", text)
    return substitute(_PASSWORD, _replace_password, text)


def may_hold_login(text: str, lowered: str) -> bool:
    """Tell whether `replace_logins` can find any."""
    return ("/" in text or ":" in text) and any(hint in lowered for hint in _LOGIN_HINTS)


def replace_logins(text: str, substitute: Substitute) -> str:
    """Replace the second of a pair: "login: anna / harbour22"."""
    return substitute(_LOGIN_PAIR, _replace_login, text)


def _replace_password(match: re.Match[str]) -> str:
    value, gap = match["value"], match["gap"]
    if value.startswith("["):
        return match.group()
    bare = value.strip("\"'«»“” ").rstrip(".!?)")
    has_digit, has_letter = any(map(str.isdigit, bare)), any(map(str.isalpha, bare))
    if not gap.strip(" \t\n-–—|/"):
        # "password hunter2" names one; "password protected" and "password-reset" do not.
        named = has_digit and has_letter and len(bare) >= _MIN_CHOSEN
        return f"{match['word']}{gap}[password]" if named else match.group()
    replaced = f"{match['word']}{gap}[password]"
    if any(sign in gap for sign in ":：=>→#"):
        # "Clave" is also the key of something: "la clave: paciencia".
        vague = match["word"].lower() == "clave" and not (has_digit or bare.isupper())
        plain = bare.isalpha() and not any(map(str.isupper, bare[1:])) and value[0] not in "\"'«“"
        # "A word on passwords: please stop writing them down."
        goes_on = plain and not _CLAUSE_ENDS.match(match.string, match.end()) and value[-1] not in ".!?)"
        return match.group() if vague or goes_on or bare.lower() in _REFERS else replaced
    says = gap.split()[-1].rstrip(":").lower()
    if says not in _TELLS:  # "to", or a line below
        return replaced if is_chosen(bare) or "\n" in gap else match.group()
    if value[0] in "\"'«“":
        return replaced
    # "the password is required" is a sentence; "the password is Sommer24" is not, nor is "… is 482913".
    special = any(not char.isalnum() and char not in "-'’.%£$€" for char in bare)
    mixed_case = any(map(str.isupper, bare[1:])) and any(map(str.islower, bare))
    chosen = (has_letter and (has_digit or special or mixed_case)) or (bare.isdigit() and len(bare) >= 4)
    following = match.string[match.end() : match.end() + 10]
    # "The password for the zip is oysterpie", but "the password reset is slow".
    direct = len(gap.split()) == 1 or gap.split()[0].lower() in _OF_WHAT
    plain = direct and says in _TELLS_PLAINLY and _is_told(value, following)
    return replaced if (chosen and _NOT_CHOSEN.fullmatch(bare) is None) or plain else match.group()


def _is_told(value: str, following: str) -> bool:
    """Tell whether the plain word behind "the password is" is the password: the clause ends, and says nothing
    of it."""
    word = value.rstrip(".!?)").lower()
    ends = len(word) < len(value) or _CLAUSE_ENDS.match(following) is not None
    return ends and word.isalpha() and word not in _NO_PASSWORDS and not word.endswith(_SAID_ENDINGS)


def _replace_passphrase(match: re.Match[str]) -> str:
    if not _SENTENCE_WORDS.isdisjoint(match["value"].lower().split()):
        return match.group()
    first = match["value"].split(maxsplit=1)[0].lower()
    return match.group() if first in _REFERS else f"{match['word']}{match['gap']}[password]"


def _replace_pass(match: re.Match[str]) -> str:
    value = match["value"].rstrip(".!?)")
    marked = any(not char.isalnum() and char not in "-'’/.:" for char in value)
    chosen = any(map(str.isalpha, value)) and (marked or any(map(str.isdigit, value)))
    return f"{match['word']}{match['gap']}[password]" if chosen and value[0] != "[" else match.group()


def _replace_login(match: re.Match[str]) -> str:
    value = match["value"]
    chosen = any(map(str.isdigit, value)) or any(
        not char.isalnum() and char not in "-'’" for char in value.rstrip(".!?)")
    )
    if not chosen or "[" in value or re.fullmatch(r"\d+(?:[./-]\d+)*[.)]?", value):
        return match.group()
    return f"{match['word']}[password]"
