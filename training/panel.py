"""The reference panel: invented people whose mail stands for "somebody else".

Their mailboxes are in `samples/personas/*.jsonl` (nobody in them exists). The authorship judge has them among
its negatives, the spread of the style features comes from them, and adapters trained on them are what
specificity compares with. Another customer's mail is never used; further public mailboxes in the same format
may be added by putting them into a folder of their own. (references/voice.md §3, metric 2)
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from training.config import CONFIGS, DataConfig
from training.dataset import prepare
from training.errors import ConfigError
from training.salutation import learn_names
from training.schemas import Example, Mail

PERSONAS = CONFIGS.parent / "samples" / "personas"
_REPLY = re.compile(r"\s*(?:re|aw|sv)\s*:", re.I)


@dataclass(frozen=True)
class Persona:
    """One member of the panel; its mail goes through the same cleaning and split as anybody's."""

    name: str
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    names: frozenset[str]
    """Names in greetings and sign-offs, lower case."""

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


def read_persona(path: Path, config: DataConfig | None = None) -> Persona:
    """Read one mailbox of sent mail. Raises ConfigError naming the file and the line."""
    mails = read_mailbox(path)
    prepared = prepare(mails, config or DataConfig())
    texts = [example.output for example in (*prepared.train, *prepared.held_out)]
    return Persona(path.stem, prepared.train, prepared.held_out, learn_names(texts))


def read_mailbox(path: Path) -> list[Mail]:
    """Read sent mails, one JSON object a line. Raises ConfigError naming the file and the line.

    Keys: `message_id`, `thread_id`, `date`, `from`, `to`, `subject`, `body` and, in replies, `in_reply_to`.
    """
    mails = []
    for position, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            value = json.loads(line)
            mails.append(
                Mail(
                    id=value["message_id"],
                    thread_id=value["thread_id"],
                    position=position,
                    sent_at=datetime.fromisoformat(value["date"]),
                    sender=value["from"],
                    to=tuple(value["to"]),
                    subject=value["subject"],
                    body_text=value["body"],
                    is_reply="in_reply_to" in value or _REPLY.match(value["subject"]) is not None,
                )
            )
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{path.name}, line {position}, is no mail of a reference panel.") from None
    return mails
