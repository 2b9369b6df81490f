"""From a person's sent mail to their own words. Read top to bottom: this is the order of events.

    headers      auto-replies, bounces, calendar, lists, machine mail, mail that the AI drafted
    decode       HTML to text, line ends, quoted-printable and charset leftovers
    quotes       own lines and the message they answer
    archive      page stamps, redaction codes and a scanner's dirt
    signatures   signatures, phone footers, disclaimers, attachment markers, noise
    pasted       articles, releases, transcripts and mails that stand below own words without a mark
    introduced   what the author says to be somebody else's, questions that are answered, documents
    quotations   long passages in quotation marks
    tails        last lines that the mailbox repeats in 30 % of its mails or more
    length       too short, too long
    machine      logs and markup, a mailbox that a program wrote
    authorship   mails that somebody else wrote: their name under it or in the subject, bare forwards
    language     mails outside the mailbox's main languages
    duplicates   near-duplicates of an earlier mail
    secrets      keys, passwords, numbers and links replaced

Only own words are ever kept as own words; what somebody else wrote is at most `answered_text`. A mail whose
own words cannot be separated with confidence is dropped and counted, never guessed.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import accumulate

from training.mail import (
    archive,
    authorship,
    footers,
    introduced,
    paragraphs,
    pasted,
    quotations,
    quotes,
    secrets,
    signatures,
    subjects,
)
from training.mail import languages as language_names
from training.mail.decode import decode_body
from training.mail.duplicates import find_near_duplicates
from training.mail.filters import (
    drop_by_headers,
    find_machine_templates,
    looks_machine_written,
    template_of,
)
from training.mail.quotes import Cut, Hole, QuoteKind, QuoteSplit
from training.mail.signatures import Tail
from training.schemas import DropReason, Mail

MIN_WORDS = 8
"""Below this a mail ("pls print. thanks") teaches a sign-off and nothing else; Panza uses 10."""
MAX_WORDS = 2_000
"""Above this it is a pasted document, and no training context is that long."""
# An average word and its space take 6 characters in English, 7 in German; a text of fewer, far longer
# "words" is data.
_MAX_CHARS_PER_WORD = 12
MAIN_LANGUAGE_SHARE = 0.2
# A mail whose secrets are half of it is a credential with a greeting.
_MOSTLY_SECRET_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class CleanedText:
    """What one mail looks like after cleaning, with every cut explained."""

    text: str
    """The decoded body that the positions of `cuts` count in."""
    own_words: str
    answered_text: str
    cuts: tuple[Cut, ...]
    own_spans: tuple[tuple[int, int], ...]
    """(start, end) of every run of own lines in `text`; like `cuts` only filled in by `clean_mail`."""
    unclear: bool
    """Own and quoted words could not be separated with confidence."""
    drop: DropReason | None
    """Why this mail is no example, judged by itself: languages and duplicates need the mailbox."""
    replaced_secrets: int
    is_forward: bool
    is_reply: bool
    is_bare_forward: bool
    """A forward by its subject, in which nothing tells where the forwarded text begins."""


@dataclass(frozen=True, slots=True)
class CleanMail:
    """One usable mail."""

    id: str
    thread_id: str
    position: int
    sent_at: datetime | None
    subject: str
    own_words: str
    answered_text: str
    is_reply: bool
    language: str
    """ISO 639-1, or "und" when it cannot be told."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """What only the whole mailbox tells about each of its mails."""

    tails: frozenset[Tail] = frozenset()
    """Repeated endings."""
    scanned: bool = False
    """Its mails went through an archive's scanner."""


@dataclass(frozen=True, slots=True)
class CleanedMailbox:
    """All usable mails in the order they were given, and what became of the others."""

    mails: list[CleanMail]
    dropped: dict[DropReason, int]
    drop_of: dict[str, DropReason]
    """Mail id → reason; ids that are not in it are in `mails`."""
    languages: dict[str, int]
    """Mails per language before the language filter."""
    replaced_secrets: int
    machine_written: bool
    machine_reason: str
    """Why, as a sentence without its full stop, when `machine_written`; else ""."""
    learnt: Learnt = field(default_factory=Learnt)
    """`clean_mail(mail, learnt)` repeats what was done to a mail."""


def clean_mailbox(
    mails: Sequence[Mail],
    *,
    language: str | None = None,
    min_words: int = MIN_WORDS,
    max_words: int = MAX_WORDS,
    on_progress: Callable[[int, int], None] | None = None,
) -> CleanedMailbox:
    """Clean all sent mails of one person.

    `language` is an ISO 639-1 code to keep; None keeps every language that makes up at least 20 % of the
    mails. A mail of undetermined language is kept. `on_progress` gets (mails done, mails in all).
    Never raises because of what a mail holds; time is linear in the size of the mailbox.
    """
    total = len(mails)
    step = max(1, total // 100)
    drop_of: dict[str, DropReason] = {}

    separated: list[_Separated] = []
    scanned = archive.is_scanned_mailbox([mail.body_text for mail in mails])
    for done, mail in enumerate(mails, start=1):
        separated.append(_separate(mail, scanned))
        if on_progress and done % step == 0 and done < total:
            on_progress(done, total)

    tails = signatures.learn_tails(
        signatures.tail_of(part.split.lines, part.split.own) for part in separated if part.drop is None
    )
    cleaned = [_finish(part, tails, min_words, max_words) for part in separated]

    templates, machine_reason = find_machine_templates([text.own_words for text in cleaned])
    kept: list[tuple[Mail, CleanedText]] = []
    for mail, text in zip(mails, cleaned, strict=True):
        if text.drop is not None:
            drop_of[mail.id] = text.drop
        elif templates and template_of(text.own_words) in templates:
            drop_of[mail.id] = DropReason.MACHINE
        else:
            kept.append((mail, text))
    doubtful = authorship.find_doubtful(
        [authorship.Signed(text.own_words, mail.sender, text.is_bare_forward) for mail, text in kept]
    )
    for at in doubtful:
        drop_of[kept[at][0].id] = DropReason.UNCLEAR_QUOTE
    kept = [pair for at, pair in enumerate(kept) if at not in doubtful]

    codes = [language_names.detect_language(text.own_words) for _, text in kept]
    wanted = (
        frozenset({language}) if language else language_names.main_languages(codes, share=MAIN_LANGUAGE_SHARE)
    )
    spoken: list[tuple[Mail, CleanedText, str]] = []
    for (mail, text), code in zip(kept, codes, strict=True):
        if code == language_names.UNDETERMINED or code in wanted:
            spoken.append((mail, text, code))
        else:
            drop_of[mail.id] = DropReason.WRONG_LANGUAGE

    duplicates = find_near_duplicates([text.own_words for _, text, _ in spoken])
    usable: list[CleanMail] = []
    replaced = 0
    for at, (mail, text, code) in enumerate(spoken):
        if at in duplicates:
            drop_of[mail.id] = DropReason.NEAR_DUPLICATE
            continue
        # The subject becomes the instruction, which is written to storage like the words themselves.
        subject = secrets.redact(subjects.clean_subject(mail.subject))
        replaced += text.replaced_secrets + subject.count
        usable.append(
            CleanMail(
                id=mail.id,
                thread_id=mail.thread_id,
                position=mail.position,
                sent_at=mail.sent_at,
                subject=subject.text,
                own_words=text.own_words,
                answered_text=text.answered_text,
                is_reply=text.is_reply,
                language=code,
            )
        )
    if on_progress:
        on_progress(total, total)
    return CleanedMailbox(
        mails=usable,
        dropped=dict(Counter(drop_of.values())),
        drop_of=drop_of,
        languages=dict(Counter(codes).most_common()),
        replaced_secrets=replaced,
        machine_written=bool(templates),
        machine_reason=machine_reason,
        learnt=Learnt(tails, scanned),
    )


def clean_mail(
    mail: Mail,
    learnt: Learnt = Learnt(),
    *,
    min_words: int = MIN_WORDS,
    max_words: int = MAX_WORDS,
) -> CleanedText:
    """Clean one mail; `learnt` is what its mailbox tells (`CleanedMailbox.learnt`)."""
    part = _separate(mail, learnt.scanned)
    cleaned = _finish(part, learnt.tails, min_words, max_words)
    return replace(cleaned, cuts=_spans(part.text, part.split), own_spans=_own_spans(part.text, part.split))


@dataclass(slots=True)
class _Separated:
    """A mail between the two passes: quotes and footers cut, repeated tails not yet known."""

    mail: Mail
    text: str
    split: QuoteSplit
    drop: DropReason | None
    unclear: bool


def _separate(mail: Mail, scanned: bool) -> _Separated:
    drop = drop_by_headers(mail)
    text = decode_body(mail.body_text, mail.body_html)
    if not text.strip():
        return _Separated(mail, text, QuoteSplit([], []), drop or DropReason.EMPTY, False)
    split = quotes.split_quotes(text, subject=mail.subject)
    unclear = _is_unclear(split, text)
    if unclear and mail.body_html and mail.body_text.strip():
        # The HTML part often says by its elements what the plain part leaves open.
        html_text = decode_body("", mail.body_html)
        html_split = quotes.split_quotes(html_text, subject=mail.subject)
        if html_text.strip() and not _is_unclear(html_split, html_text):
            text, split, unclear = html_text, html_split, False
    _cut_lines(split, archive.find_stamps(text, split.lines, split.own), "archive stamp")
    if "-----BEGIN PGP" in text:
        _cut_lines(split, footers.find_armor(split.lines, split.own), "OpenPGP")
    if footers.may_hold_pictures(text):
        _cut_lines(split, footers.find_pictures(split.lines, split.own), "attachment")
    _cut_after(split, *signatures.count_kept(split.lines, split.own))
    if scanned or archive.is_scanned(text):
        _cut_what_was_scanned(split, text, mail.sender)
    if drop is None and not unclear:
        _cut_words_of_others(split, mail)
    return _Separated(mail, text, split, drop, unclear)


def _cut_what_was_scanned(split: QuoteSplit, text: str, sender: str) -> None:
    _cut_after(split, archive.count_without_remains(split.lines, split.own), "quote")
    dirt, parts = archive.find_dirt(text, split.lines, split.own, sender)
    if dirt:
        _cut_lines(split, dirt, "archive stamp")
        _cut_after(split, *signatures.count_kept(split.lines, split.own))
    split.holes += [
        Hole((index, start), (index, end), "archive stamp", " ")
        for index, columns in parts.items()
        for start, end in columns
    ]


def _cut_words_of_others(split: QuoteSplit, mail: Mail) -> None:
    """Cut what no client marked: pasted text, what the author introduces as another's, long quotations."""
    kept = pasted.find_pasted(split.lines, split.own, subject=mail.subject, sender=mail.sender)
    if kept is not None:
        _cut_after(split, kept, "pasted")
        split.kind = split.kind or QuoteKind.FORWARD
    runs = introduced.find_introduced(split.lines, split.own, subject=mail.subject, sender=mail.sender)
    if runs:
        _cut_lines(split, {split.own[at] for start, end in runs for at in range(start, end)}, "introduced")
        split.kind = split.kind or QuoteKind.FORWARD
    asked = introduced.find_questions(split.lines, split.own, subject=mail.subject)
    split.holes += [Hole(start, end, "introduced") for start, end in asked]
    quoted, holes = quotations.find_quotations(split.lines, split.own)
    _cut_lines(split, quoted, "quotation")
    split.holes += [Hole(start, end, "quotation", quotations.MARK) for start, end in holes]


def _settle_holes(split: QuoteSplit) -> None:
    """Order the holes, drop those that overlap an earlier one, and end each where the own lines end."""
    if not split.holes:
        return
    own = frozenset(split.own)
    settled: list[Hole] = []
    for hole in sorted(split.holes):
        if hole.start[0] not in own or (settled and hole.start < settled[-1].end):
            continue
        last = hole.start[0]
        while last < hole.end[0] and last + 1 in own:
            last += 1
        end = hole.end if last == hole.end[0] else (last, len(split.lines[last]))
        settled.append(replace(hole, end=end))
    split.holes = settled


def _is_unclear(split: QuoteSplit, text: str) -> bool:
    if split.hopeless:
        return True
    if not (split.ambiguous or split.inline):
        return False
    own_words = quotes.join_own(split.lines, split.own)
    return not quotes.is_confirmed(text, own_words, trust_marks=not split.ambiguous)


def _cut_after(split: QuoteSplit, kept: int, reason: str) -> None:
    """Cut all own lines from number `kept` on."""
    if reason:
        _note_cut(split, split.own[kept:], reason)
    del split.own[kept:]


def _cut_lines(split: QuoteSplit, removed: set[int], reason: str) -> None:
    """Cut own lines by their numbers, wherever they stand."""
    if removed:
        _note_cut(split, sorted(removed), reason)
        split.own = [index for index in split.own if index not in removed]


def _note_cut(split: QuoteSplit, removed: Sequence[int], reason: str) -> None:
    """Note one cut per run of neighbouring lines that hold something."""
    runs: list[list[int]] = []
    for index in removed:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    split.cuts += [
        (reason, run[0], run[-1] + 1) for run in runs if any(split.lines[index].strip() for index in run)
    ]


def _finish(part: _Separated, tails: frozenset[Tail], min_words: int, max_words: int) -> CleanedText:
    mail, split = part.mail, part.split
    tailed = False
    if split.own:
        before = signatures.count_before_tail(split.lines, split.own, tails)
        tailed = before < len(split.own)
        if tailed:
            _cut_after(split, before, "repeated tail")
    _settle_holes(split)
    own = paragraphs.unwrap(paragraphs.tidy(quotes.join_own(split.lines, split.own, split.holes)))
    words = len(own.split())
    drop = part.drop
    replaced = 0
    answered = ""
    if drop is None:
        drop = _drop_by_content(part, own, words, min_words, max_words)
    if words:
        redacted = secrets.redact(own)
        if redacted.count:
            replaced = redacted.count
            left = redacted.text
            for placeholder in secrets.PLACEHOLDERS:
                left = left.replace(placeholder, " ")
            mostly = redacted.removed_chars >= _MOSTLY_SECRET_SHARE * len(own)
            if drop is None and (mostly or len(left.split()) < min_words):
                drop = DropReason.SECRET
            own = redacted.text
    if drop is None:
        answered = _answered_from_store(mail.answered_text) if mail.answered_text else split.answered_text
        answered = secrets.redact(paragraphs.unwrap(paragraphs.tidy(answered))).text
    return CleanedText(
        text=part.text,
        own_words=own,
        answered_text=answered,
        cuts=(),  # `clean_mail` fills them in; a mailbox does not need them
        own_spans=(),
        unclear=part.unclear,
        drop=drop,
        replaced_secrets=replaced,
        is_forward=split.kind is QuoteKind.FORWARD,
        is_bare_forward=split.kind is None and not tailed and subjects.is_forward_subject(mail.subject),
        is_reply=mail.is_reply
        or subjects.is_reply_subject(mail.subject)
        or (split.kind is QuoteKind.REPLY and not subjects.is_forward_subject(mail.subject)),
    )


def _drop_by_content(
    part: _Separated, own: str, words: int, min_words: int, max_words: int
) -> DropReason | None:
    if part.unclear:
        return DropReason.UNCLEAR_QUOTE
    if words > max_words or len(own) > max_words * _MAX_CHARS_PER_WORD:
        return DropReason.TOO_LONG
    if words < min_words:
        if part.split.kind is QuoteKind.FORWARD:
            return DropReason.FORWARD_ONLY
        if part.split.kind is QuoteKind.REPLY and not any(map(str.isalnum, own)):
            return DropReason.QUOTE_ONLY
        if any(reason == "quotation" for reason, *_ in part.split.cuts) or any(
            hole.reason == "quotation" for hole in part.split.holes
        ):
            return DropReason.QUOTE_ONLY
        return DropReason.TOO_SHORT
    if looks_machine_written(own):
        return DropReason.MACHINE
    if authorship.is_somebody_elses(own, subject=part.mail.subject, sender=part.mail.sender):
        return DropReason.UNCLEAR_QUOTE
    return None


def _answered_from_store(answered_text: str) -> str:
    """Return a received body without what it quotes itself; headers and nested quotes are no context."""
    text = decode_body(answered_text)
    split = quotes.split_quotes(text)
    kept, _ = signatures.count_kept(split.lines, split.own)
    return quotes.join_own(split.lines, split.own[:kept]) or split.answered_text


def _spans(text: str, split: QuoteSplit) -> tuple[Cut, ...]:
    """Return the cuts as character positions in the decoded body."""
    if not (split.cuts or split.holes):
        return ()
    starts = _line_starts(split.lines)
    whole = [
        Cut(reason, starts[first], min(starts[after], len(text)))
        for reason, first, after in split.cuts
        if first < after
    ]
    parts = [Cut(hole.reason, *_positions(starts, hole)) for hole in split.holes]
    return tuple(sorted([*whole, *parts], key=lambda cut: cut.start))


def _own_spans(text: str, split: QuoteSplit) -> tuple[tuple[int, int], ...]:
    """Return the own lines that hold something, neighbours joined, as character positions in `text`."""
    starts = _line_starts(split.lines)
    spans: list[tuple[int, int]] = []
    previous = -2
    for index in split.own:
        line = split.lines[index].rstrip()
        if line:
            start, end = starts[index], min(starts[index] + len(line), len(text))
            if index == previous + 1:
                start = spans.pop()[0]
            spans.append((start, end))
            previous = index
        elif index == previous + 1:
            previous = index  # a blank line between own lines does not part them
    if split.holes:
        spans = _outside(spans, [_positions(starts, hole) for hole in split.holes])
    return tuple(spans)


def _line_starts(lines: Sequence[str]) -> Sequence[int]:
    # Numbers of eight bytes: as objects they would take a fifth of what the largest mail may take.
    return array("q", accumulate((len(line) + 1 for line in lines), initial=0))


def _positions(starts: Sequence[int], hole: Hole) -> tuple[int, int]:
    return starts[hole.start[0]] + hole.start[1], starts[hole.end[0]] + hole.end[1]


def _outside(spans: Sequence[tuple[int, int]], holes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans without what lies in the holes; both in order and not overlapping."""
    left: list[tuple[int, int]] = []
    at = 0
    for start, end in spans:
        while at < len(holes) and holes[at][1] <= start:
            at += 1
        place = start
        number = at
        while number < len(holes) and holes[number][0] < end:
            if place < holes[number][0]:
                left.append((place, holes[number][0]))
            place = max(place, holes[number][1])
            number += 1
        if place < end:
            left.append((place, end))
    return left
