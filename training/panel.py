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
from training.gate_config import GateConfig
from training.panel_file import PanelMember
from training.salutation import learn_names
from training.schemas import Example, Mail

PERSONAS = CONFIGS.parent / "samples" / "personas"
SAME_PERSON = 0.1
"""Share of a persona's mails, word for word among a person's own, from which the two are one. Short phrases
that anybody sends ("Thanks, see you then.") stay far below it."""
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


def panel_members(config: GateConfig, own: Sequence[Example] = ()) -> tuple[PanelMember, ...]:
    """Return the personas that the gate compares with: as many as `specificity.references` says, the shipped
    ones first. `own` is the examples of the person who is judged, who is left out when on the panel.

    Raises ConfigError when there are fewer, and when a folder of `config.panel` holds no mailbox.
    """
    wanted = config.specificity.references
    if wanted == 0:
        return ()
    found = read_panel((PERSONAS, *config.panel))
    if wanted > len(found):
        raise ConfigError(
            f"specificity.references is {wanted}, and the reference panel has {len(found)} mailboxes. Lower "
            "it in the gate's configuration, or add folders of mailboxes to its panel."
        )
    return tuple(PanelMember(p.name, p.train, p.held_out) for p in _others(found, own)[:wanted])


def panel_texts(config: GateConfig, own: Sequence[Example] = ()) -> tuple[str, ...]:
    """Return the own words of the whole panel without the person who is judged: the judge's negatives.

    Raises ConfigError when a folder of `config.panel` holds no mailbox.
    """
    others = _others(read_panel((PERSONAS, *config.panel)), own)
    return tuple(text for persona in others for text in persona.texts)


def _others(panel: Sequence[Persona], own: Sequence[Example]) -> list[Persona]:
    words = {example.output for example in own}
    return [
        persona
        for persona in panel
        if sum(text in words for text in persona.texts) < SAME_PERSON * len(persona.texts)
    ]


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
