"""`panel.jsonl`: the reference panel as a job folder carries it, invented people and their mail, one example
a line.

Read by the GPU side, which trains adapters on it, and which must not load the mail cleaner that
`training.panel` needs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from training.errors import ConfigError
from training.schemas import Example, Schema

_NAME = re.compile(r"\w[\w .@+-]{0,99}")
"""A persona's name becomes the name of a folder."""


@dataclass(frozen=True)
class PanelMember:
    """One persona: what its adapter is trained on, and what an adapter of somebody else is measured on."""

    name: str
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """All own words, one text a mail, training part first."""
        return tuple(example.output for example in (*self.train, *self.held_out))


class PanelLine(Schema):
    """One line of the file."""

    persona: str
    part: Literal["train", "held_out"]
    example: Example


def to_panel_jsonl(members: Iterable[PanelMember]) -> str:
    """Return the file's text; no member gives an empty one.

    Ids are led by the persona's name: mailboxes from different places may share them, and losses are matched
    by id. Raises ConfigError when two members share a name, or a name cannot be a folder's.
    """
    lines = []
    names: set[str] = set()
    for member in members:
        if member.name in names:
            raise ConfigError(
                f"The reference panel has two mailboxes named {member.name!r:.60}. Rename one of the files."
            )
        names.add(_require_name(member.name))
        for part in ("train", "held_out"):
            lines += [
                PanelLine(
                    persona=member.name,
                    part=part,
                    example=example.model_copy(
                        update={
                            "id": f"{member.name}/{example.id}",
                            "thread_id": f"{member.name}/{example.thread_id}",
                        }
                    ),
                )
                for example in getattr(member, part)
            ]
    return "".join(json.dumps(line.to_json_dict(), ensure_ascii=False) + "\n" for line in lines)


def from_panel_jsonl(text: str) -> tuple[PanelMember, ...]:
    """Read what `to_panel_jsonl` wrote, in its order. Raises ConfigError with the line's number alone."""
    found: dict[str, dict[str, list[Example]]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            read = PanelLine.model_validate_json(line)
        except ValidationError:
            raise ConfigError(
                f"Line {number} of panel.jsonl is not an example of a persona (persona, part, example)."
            ) from None
        parts = found.setdefault(_require_name(read.persona), {"train": [], "held_out": []})
        parts[read.part].append(read.example)
    return tuple(
        PanelMember(name, tuple(parts["train"]), tuple(parts["held_out"])) for name, parts in found.items()
    )


def _require_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name.endswith((".", " ")):
        raise ConfigError(
            f"{name!r:.60} cannot be the name of a mailbox of the reference panel: letters, digits, spaces "
            "and . _ @ + - only, at most 100. Rename its file."
        )
    return name
