"""The reference panel: invented people whose mail stands for "somebody else".

Their mailboxes are in `samples/personas/*.jsonl` (nobody in them exists). The authorship judge has them among
its negatives, the spread of the style features comes from them, and adapters trained on them are what
specificity compares with. Another customer's mail is never used; further public mailboxes in the same format
may be added by putting them into a folder of their own. (references/voice.md §3, metric 2)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training.config import CONFIGS, DataConfig
from training.dataset import prepare
from training.errors import ConfigError
from training.gate_config import GateConfig
from training.panel_file import PanelMember
from training.salutation import learn_names
from training.schemas import Example, Mail

PERSONAS = CONFIGS.parent / "samples" / "personas"
SAME_PERSON = 0.1
"""Share of a persona's mails, word for word among a person's own, from which the two are one. Short phrases
that anybody sends ("Thanks, see you then.") stay far below it."""
OWN_MAILS = 10
"""Mails of a person from which it tells who they are that half of them stand in a mailbox of the panel: an
incremental training has the new mail alone, a small share of a mailbox that has them all."""
MOST_TRAIN, MOST_HELD_OUT = 43, 22
"""Mails of one member: as many as the largest of the invented people has. With more, a public mailbox would
be most of the judge's negatives, and a stronger opponent than the thresholds were calibrated with."""
LEAST_TRAIN = 20
"""Training mails below which an adapter is no opponent (JUDGED: half of what the invented people have)."""
_REPLY = re.compile(r"\s*(?:re|aw|sv)\s*:", re.I)
_PREFIXES = re.compile(
    r"^(?:\s*(?:re|aw|sv|antw|rif|res|odp|vs|ref|fwd?|wg|tr|rv|回复|答复|转发)(?:\[\d+\])?\s*[:\uff1a])+\s*",
    re.I,
)
"""As store/importers/message.py has them, which may not be imported here; a test holds the two together."""


@dataclass(frozen=True)
class Persona:
    """One member of the panel; its mail goes through the same cleaning and split as anybody's."""

    name: str
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    names: frozenset[str]
    """Names in greetings and sign-offs, lower case."""
    known: tuple[str, ...] = ()
    """Own words of all usable mails that were read, also of those that are too many: who is judged may be
    known by them."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All own words, one text a mail, training part first."""
        return tuple(example.output for example in (*self.train, *self.held_out))


def read_panel(
    folders: Sequence[Path] = (PERSONAS,), *, without: Sequence[str] = (), config: DataConfig | None = None
) -> tuple[Persona, ...]:
    """Read every mailbox of `folders`, in the order of their names.

    `without` leaves personas out: the person who is judged, when they are on the panel.

    Raises ConfigError when a folder holds no mailbox, or naming the file and line that is not a mail.
    """
    found = []
    for folder in folders:
        paths = sorted(folder.glob("*.jsonl"))
        if not paths:
            raise ConfigError(f"The reference panel {folder.name} holds no .jsonl mailbox. Restore it.")
        found += [read_persona(path, config) for path in paths if path.stem not in without]
    return tuple(found)


def panel_members(config: GateConfig, own: Sequence[Example] = ()) -> tuple[PanelMember, ...]:
    """Return the personas that the gate compares with: as many as `specificity.references` says, the shipped
    ones first. `own` is the examples of the person who is judged, who is left out when on the panel.

    Raises ConfigError when there are fewer, and when a folder of `config.panel` holds no mailbox.
    """
    wanted = config.specificity.references
    if wanted == 0:
        return ()
    found = read_panel((PERSONAS, *config.panel))
    able = [persona for persona in found if len(persona.train) >= LEAST_TRAIN and persona.held_out]
    if wanted > len(able):
        few = ", ".join(f"{p.name} has {len(p.train)}" for p in found if p not in able)
        which = f" with {LEAST_TRAIN} to train on ({few})" if few else ""
        raise ConfigError(
            f"specificity.references is {wanted}, and the reference panel has {len(able)} mailboxes{which}. "
            "Lower it in the gate's configuration, or add folders of mailboxes to its panel."
        )
    return tuple(PanelMember(p.name, p.train, p.held_out) for p in _others(able, own)[:wanted])


def panel_texts(config: GateConfig, own: Sequence[Example] = ()) -> tuple[str, ...]:
    """Return the own words of the whole panel without the person who is judged: the judge's negatives.

    Raises ConfigError when a folder of `config.panel` holds no mailbox.
    """
    others = _others(read_panel((PERSONAS, *config.panel)), own)
    return tuple(text for persona in others for text in persona.texts)


def _others(panel: Sequence[Persona], own: Sequence[Example]) -> list[Persona]:
    words = {example.output for example in own}
    return [persona for persona in panel if not _is_same(persona, words)]


def _is_same(persona: Persona, words: set[str]) -> bool:
    """Tell whether the person with these own words is `persona`."""
    for texts in (persona.texts, persona.known):
        if texts and sum(text in words for text in texts) >= SAME_PERSON * len(texts):
            return True
    return len(words) >= OWN_MAILS and len(words.intersection(persona.known)) >= len(words) / 2


def read_persona(path: Path, config: DataConfig | None = None) -> Persona:
    """Read one mailbox of sent mail, cleaned and split as a training's is: the newest mails of each part, as
    many as the invented people have. Raises ConfigError naming the file and the line."""
    config = config or DataConfig()
    prepared = prepare(read_mailbox(path)[-config.max_mails :], config)
    train, held_out = prepared.train[-MOST_TRAIN:], prepared.held_out[-MOST_HELD_OUT:]
    known = tuple(example.output for example in (*prepared.train, *prepared.held_out))
    return Persona(path.stem, train, held_out, learn_names([e.output for e in (*train, *held_out)]), known)


def read_mailbox(path: Path) -> list[Mail]:
    """Read sent mails, one JSON object a line. Raises ConfigError naming the file, the line and the field.

    Keys: `message_id`, `from`, `to`, `subject`, `body` (text or null) and, where the source knows them,
    `thread_id`, `date` (ISO 8601 or null) and, in replies, `in_reply_to`. Others are ignored.
    """
    keep = "or take it out of the panel's folder"
    try:
        # A line ends at its line feed: `splitlines` would also end one at a U+2028 in somebody's words.
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as exc:
        raise ConfigError(
            f"{path.name} of the reference panel cannot be read ({exc.strerror}). Correct that, {keep}."
        ) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(
            f"{path.name} of the reference panel is not UTF-8 text (byte {exc.start}). "
            f"Save it as UTF-8, {keep}."
        ) from None
    mails = []
    for position, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            mails.append(_read_mail(line, position))
        except ValueError as exc:
            raise ConfigError(
                f"{path.name}, line {position}, is no mail of a reference panel: {exc}. Correct it, {keep}."
            ) from None
    if not mails:
        raise ConfigError(
            f"{path.name} of the reference panel holds no mail. Put one JSON object a line into it, {keep}."
        )
    return mails


def _read_mail(line: str, position: int) -> Mail:
    """Read one line. Raises ValueError with the field that is wrong, never with its content."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    message_id, sender, subject = (_text(value, name) for name in ("message_id", "from", "subject"))
    to, cc = _people(value, "to"), _people(value, "cc", [])
    body = "" if value.get("body", "") is None else _text(value, "body")
    thread_id = _text(value, "thread_id", "") or _thread_of(subject, (sender, *to, *cc), message_id)
    return Mail(
        id=message_id,
        thread_id=thread_id,
        position=position,
        sent_at=_date(value),
        sender=sender,
        to=to,
        cc=cc,
        subject=subject,
        body_text=body.replace("\r\n", "\n"),
        is_reply="in_reply_to" in value or _REPLY.match(subject) is not None,
    )


def _text(value: Mapping[str, Any], name: str, default: str | None = None) -> str:
    found = value.get(name, default)
    if found is None and name not in value:
        raise ValueError(f"`{name}` is missing")
    if not isinstance(found, str):
        raise ValueError(f"`{name}` must be text")
    return found


def _people(value: Mapping[str, Any], name: str, default: list[str] | None = None) -> tuple[str, ...]:
    found = value.get(name, default)
    if found is None and name not in value:
        raise ValueError(f"`{name}` is missing")
    if not isinstance(found, list) or not all(isinstance(person, str) for person in found):
        raise ValueError(f"`{name}` must be a list of addresses")
    return tuple(found)


def _date(value: Mapping[str, Any]) -> datetime | None:
    """Return the moment in UTC, which a date without a zone is taken for."""
    found = value.get("date")
    if found is None:
        return None
    try:
        moment = datetime.fromisoformat(found)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("`date` must be a date and time as of ISO 8601, or null") from None


def _thread_of(subject: str, people: Sequence[str], message_id: str) -> str:
    """Return the conversation of a mail without a thread id: the same subject among the same people, as the
    importer has it. One without a subject is a conversation of its own."""
    topic = " ".join(_PREFIXES.sub("", subject).lower().split())
    if not topic:
        return message_id
    everybody = {person.rpartition("<")[2].rstrip("> ").strip().lower() for person in people}
    # Hashed: the ids of threads go into files of losses, which hold no word of anybody's mail.
    digest = hashlib.sha256(f"{topic}|{sorted(everybody)}".encode("utf-8", "replace")).hexdigest()
    return f"subject-{digest[:40]}"
