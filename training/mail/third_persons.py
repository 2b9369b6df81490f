"""Find names, addresses and telephone numbers of other people in a person's own words.

They are the facts that a small adapter memorises first and that nobody may get out of it again (StyleTunedLM,
arXiv 2409.04574, masks named entities in the loss for this reason). The words stay in the text: the model
reads them, but is never trained to produce them. Names come from the mailbox itself: who stands in its
address headers, who is greeted, who is called Mr, Ms or Dr; no model, no list of first names, any language
that writes names with capitals. Linear time: every repetition is bounded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from training.schemas import Mail

Span = tuple[int, int]
"""Characters `start` to `end` (exclusive)."""

MIN_NAME_LETTERS = 3
_MAX_NAME_WORDS = 4
"""A display name of more words is a department or a list, not a person; particles do not count."""
_PARTICLES = frozenset(
    [
        *("de", "del", "la", "las", "los", "da", "das", "do", "dos", "e", "y", "van", "von", "der", "den"),
        *("di", "du", "le", "el", "al", "bin", "ibn", "ter", "ten"),
    ]
)

_WORD = re.compile(r"[^\W\d_]{3,40}")
_ENTRY_END = re.compile(r"[</\[(@]|\b(?:CN|OU|O)=", re.I)
_ADDRESS_IN_ENTRY = re.compile(r"<\s*([^<>\s@]{1,100})@|^([^<>\s@]{1,100})@[^\s@]{1,200}$")

_DOMAIN = re.compile(r"@ ?([\w.-]{3,200})")

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5}")
# Groups of digits; which of them are a number is told by `_phones_in`.
_DIGIT_GROUPS = re.compile(
    r"(?<![\w.,/+-])(?:\+ ?|\()?\d{1,15}\)?(?:(?:[ .\-/‑–(]{1,3}|(?<=\)))\d{1,12}\)?){0,9}(?!\w|[.,-]\d)"
)
_GROUP = re.compile(r"[+(]{0,2}\d+\)?")
_NOT_A_PHONE = re.compile(
    r"\d{4}([-. /])\d{1,2}\1\d{1,2}|\d{1,2}([-. /])\d{1,2}\2(?:\d\d|(?:19|20)\d\d)"  # dates
    r"|\d{1,2}[.]\d{2} ?[-–] ?\d{1,2}[.]\d{2}|\d{1,3}[.]\d{3,6} \d{1,3}[.]\d{3,6}"  # times, coordinates
    r"|\d{4} ?[-–/] ?\d{4}"  # years, and from-to
    r"|\d{1,3}(?:[.]\d{3}){1,4}|[1-5]?\d{1,2}(?: \d{3}){1,4}|\d{1,3} \d{3}(?: \d{3}){2,3}"  # thousands
    r"|\d{5}-\d{4}"  # American postal codes
)
_IP_OR_ISBN = re.compile(r"\d{1,3}(?:[.]\d{1,3}){3}|97[89][- ][\d -]+")
_YEAR = re.compile(r"(?:19|20)\d\d")
_MIN_PHONE_DIGITS, _MIN_UNGROUPED, _MAX_PHONE_DIGITS = 7, 9, 15
"""E.164: 15 digits at most. Fewer than nine without a blank between them are any number."""
_NAME_WORD = r"[^\W\d_a-zß-öø-ÿ](?:[^\W\d_]{1,30}(?:['’-][^\W\d_]{2,30})?|['’][^\W\d_]{2,30})"
"""Begins with a letter that is not small (Latin-1 spelt out: `re` has no class for capitals)."""
_TITLED = re.compile(
    r"\b(?:Mr|MR|Mrs|MRS|Ms|MS|Miss|Mx|Dr|DR|M\.|Prof|Professor|Sen|Rep|Gov|Herrn?|Frau|Hr|Fr|Mme|Mlle|Monsieur|Madame|Sr|Sra|"
    r"Srta|Señora?|Senhora?|Dott|Dott\.ssa|Sig|Sig\.ra|Signora?|Dhr|Mevr|Mevrouw|Meneer)\b\.?[ \t]"
    r"(?:(?:Dr|Prof)\.?[ \t](?:\w{2,4}\.[ \t])?|\w{2,4}\.[ \t])?(?P<name>"
    + _NAME_WORD
    + r"(?:[ \t](?:[A-Z]\.[ \t]?)?"
    + _NAME_WORD
    + r"){0,2})"
)
_GREETING = re.compile(
    r"^[ \t]{0,8}(?:hi|hello|hey|dear|good (?:morning|afternoon|evening)|morning|hallo|liebe[rs]?|"
    r"(?:sehr )?geehrte[rs]?|guten (?:morgen|tag|abend)|bonjour|bonsoir|salut|chère?s?|hola|buenos días|"
    r"querid[oa]|estimad[oa]|ciao|car[oa]|gentile|buongiorno|hoi|beste|geachte|olá|oi|prezad[oa]|bom dia|"
    r"greetings|howdy|hiya|yo|moin|servus|hej|hei|kære|kjære|ahoj|cześć|привет|здравствуйте,?)"
    r"[ \t]{1,3}(?P<name>[^\W\d_]{3,30})"
    r"(?:[ \t]{0,2}(?:,|&|/|\+|\b(?:and|und|et|y|e|en)\b)[ \t]{0,2}(?P<second>[^\W\d_]{3,30}))?"
    r"(?:[ \t]{0,2}(?:,|&|/|\+|\b(?:and|und|et|y|e|en)\b)[ \t]{0,2}(?P<third>[^\W\d_]{3,30}))?"
    r"(?=[ \t]{0,3}(?:[,:;!.–—-]|$))",
    re.I | re.M,
)
_GREETED = ("name", "second", "third")
_BARE_GREETING = re.compile(
    r"\A\s{0,20}(?P<name>" + _NAME_WORD + r")[ \t]{0,2}(?:,|–|—|--?)[ \t]{0,3}(?:\n|$)"
)
_BETWEEN_NAMES = re.compile(r"[ \t]{1,2}(?:[A-Z]\.?[ \t])?")

_NEVER = frozenset(
    [
        *("january", "february", "march", "april", "may", "june", "july", "august", "september", "october"),
        *("november", "december", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"),
        *("sunday", "all", "there", "team", "everyone", "everybody", "folks", "guys", "sir", "madam", "both"),
        *("again", "friends", "colleagues", "ladies", "gentlemen", "greetings", "dear", "hello", "hey"),
        *("prof", "professor", "doctor", "editor", "reviewer", "reviewers"),
        *("info", "support", "sales", "admin", "office", "contact", "mail", "email", "list", "newsletter"),
        *("help", "service", "postmaster", "webmaster", "noreply"),
        *("zusammen", "alle", "alles", "leute", "damen", "herren", "kollegen", "kolleginnen", "freunde"),
        *("allemaal", "iedereen", "tous", "toutes", "todos", "todas", "tutti", "tutte", "amici", "amigos"),
        *(
            "customer",
            "customers",
            "love",
            "honey",
            "darling",
            "mum",
            "mom",
            "dad",
            "neighbours",
            "neighbors",
        ),
        *("world", "gang", "mates"),
        *("president", "chairman", "speaker", "secretary", "mayor", "ambassador", "attorney"),
    ]
)
"""Words of headers, greetings and titles that are nobody's name, or more often something else."""


def learn_names(mails: Iterable[Mail], own_texts: Sequence[str]) -> frozenset[str]:
    """Return the name words of everybody but the author in a person's sent mail, in small letters.

    `own_texts` are their own words: a name (Will, Mark, Rose) that they write small at least as often as with
    a capital is an ordinary word to them; it is returned with a capital, and is a name only where nothing
    else can stand. The name of a company is an ordinary word, too: a domain of several.
    """
    author: set[str] = set()
    others: set[str] = set()
    at_domain: dict[str, set[str]] = {}
    for mail in mails:
        author.update(name_words(mail.sender))
        for entry in (*mail.to, *mail.cc):
            others.update(name_words(entry))
            for domain in _DOMAIN.findall(entry):
                for label in domain.lower().split(".")[:-1] or [domain.lower()]:
                    at_domain.setdefault(label, set()).add(entry)
    small: Counter[str] = Counter()
    capital: Counter[str] = Counter()
    for text in own_texts:
        others.update(greeted := _greeted(text))
        for match in _WORD.finditer(text):
            word = match.group()
            (small if word.islower() else capital)[word.lower()] += 1
        # "hi bob" makes bob no ordinary word.
        small.subtract(greeted)
    ordinary = {word for word in others if small[word] > 0 and small[word] >= capital[word]}
    # Anna Lee may be the only one at lee.example; where several write from, is a company or a provider.
    companies = {label for label, entries in at_domain.items() if len(entries) > 1}
    people = others - author - companies - _NEVER
    return frozenset(people - ordinary) | {word.capitalize() for word in people & ordinary}


def find_third_persons(text: str, names: frozenset[str]) -> tuple[Span, ...]:
    """Return where `text` names other people: sorted, apart, with the words between two names of one person.

    `names` are what `learn_names` returns. Those in small letters count where they begin with a capital, and
    in a greeting however they are written; those with a capital ("Will") in a greeting and where a capital is
    no beginning of a sentence.
    """
    spans: list[Span] = []
    if "@" in text:
        spans += [match.span() for match in _EMAIL.finditer(text)]
    for groups in _DIGIT_GROUPS.finditer(text):
        spans += _phones_in(groups)
    spans += [
        match.span("name")
        for match in _TITLED.finditer(text)
        if match["name"].split()[0].lower() not in _NEVER
    ]
    if names:
        for match in _WORD.finditer(text):
            word = match.group()
            if word[0].islower():
                continue
            if word.lower() in names or (word in names and _is_within_sentence(text, match.start())):
                spans.append(match.span())
        for match in _GREETING.finditer(text):
            for group in _GREETED:
                word = match[group] or ""
                if word and (word.lower() in names or word.capitalize() in names):
                    spans.append(match.span(group))
    return _joined(text, spans)


def name_words(entry: str) -> list[str]:
    """Return the lower-case words of 3 letters and more that name the person of one address header entry.

    Understands `Name <address>`, `Last, First`, a bare address with a name in it, and X.400 tails.
    """
    words: list[str] = []
    address = _ADDRESS_IN_ENTRY.search(entry[:300])
    if address:
        words += _WORD.findall((address[1] or address[2]).replace("_", " "))
    if address is None or address[1]:
        end = _ENTRY_END.search(entry)
        display = entry[: end.start()] if end else entry[:100]
        if sum(word.lower() not in _PARTICLES for word in display.split()) <= _MAX_NAME_WORDS:
            words += _WORD.findall(display)
    return [word.lower() for word in words]


def _greeted(text: str) -> list[str]:
    """Return the lower-case words that a mail greets: "Hi bob and Ann," or a first line that is a name."""
    found = [match[group] for match in _GREETING.finditer(text) for group in _GREETED]
    bare = _BARE_GREETING.match(text)
    if bare and bare["name"].isupper():
        bare = None  # "FYI -"
    return [
        word.lower() for word in (*found, bare["name"] if bare else None) if word and _WORD.fullmatch(word)
    ]


def _is_within_sentence(text: str, start: int) -> bool:
    """Tell whether what stands before a word lets no sentence begin there: a small letter or a comma."""
    before = text[max(0, start - 3) : start]
    return before.endswith(" ") and (before.rstrip(" ")[-1:].islower() or before.rstrip(" ")[-1:] == ",")


def _phones_in(groups: re.Match[str]) -> list[Span]:
    """Return where telephone numbers stand in groups of digits: from the left, the longest first."""
    places = [
        (groups.start() + one.start(), groups.start() + one.end()) for one in _GROUP.finditer(groups.group())
    ]
    found: list[Span] = []
    first = len(places) if _IP_OR_ISBN.fullmatch(groups.group()) else 0
    while first < len(places):
        for last in range(len(places), first, -1):
            start, end = places[first][0], places[last - 1][1]
            if _is_phone(groups.string[start:end]):
                found.append((start, end))
                first = last
                break
        else:
            first += 1
    return found


def _is_phone(text: str) -> bool:
    """Tell whether groups of digits are a telephone number, and no date, time, amount or list of years."""
    parts = re.findall(r"\d+", text)
    digits = "".join(parts)
    if not _MIN_PHONE_DIGITS <= len(digits) <= _MAX_PHONE_DIGITS:
        return False
    if text[0] == "+" or (digits.startswith("00") and len(digits) > _MIN_UNGROUPED):
        return True
    if len(parts) == 1:
        return len(digits) >= _MIN_UNGROUPED
    if _NOT_A_PHONE.fullmatch(text):
        return False
    short = all(len(part) <= 4 for part in parts)
    if short and _YEAR.fullmatch(parts[0]) and (len(parts) == 2 or all(map(_YEAR.fullmatch, parts))):
        return False
    national = digits[0] == "0" or text[0] == "("
    same = len({len(part) for part in parts}) == 1
    # "1200 1500 1800", "40 50 60 70": amounts.
    return national or not (same and all(part.endswith("0") for part in parts))


def _joined(text: str, spans: list[Span]) -> tuple[Span, ...]:
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and (start <= joined[-1][1] or _BETWEEN_NAMES.fullmatch(text, joined[-1][1], start)):
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return tuple(joined)
