"""The cleaner on real mailboxes: what is kept, which secrets are replaced, which names are left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.mailboxes import SHARED, Mailbox, read_sent
from training.config import DataConfig
from training.dataset import prepare
from training.gate_config import load_gate_config
from training.mail.clean import clean_mailbox
from training.mail.secrets import redact
from training.mail.third_persons import find_third_persons, learn_names
from training.panel import panel_members, panel_texts
from training.panel_file import from_panel_jsonl, to_panel_jsonl
from training.schemas import DropReason, Mail

pytestmark = pytest.mark.shared_data


def path_of(user: str) -> Path:
    """Return where the mailbox lies; skips the test where it is not beside the repository."""
    path = SHARED / f"{user}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside the repository")
    return path


def test_the_public_mailboxes_are_a_reference_panel(tmp_path: Path) -> None:
    path_of("david")
    (tmp_path / "gate.yaml").write_text(f"panel: [{SHARED}]\nspecificity: {{references: 13}}\n")
    config = load_gate_config(tmp_path / "gate.yaml")
    own = prepare(read_sent(Mailbox("david", SHARED / "david.jsonl")), DataConfig())
    others = [
        path.stem for path in sorted(SHARED.glob("*.jsonl")) if path.stem not in ("david", "davis-pete")
    ]
    invented = ["constance", "kit", "ludo", "philippa"]
    # davis-pete is a machine's log with one usable mail.
    everybody = panel_members(config)
    assert [member.name for member in everybody] == [
        *invented,
        "black-t",
        "dasovich-j",
        "david",
        *others[2:-1],
    ]
    found = panel_members(config, (*own.train, *own.held_out))
    assert [member.name for member in found] == [*invented, *others], "never the person's own"
    assert all(20 <= len(member.train) <= 43 and 1 <= len(member.held_out) <= 22 for member in found)
    marks = ("-----Original Message", "Forwarded by ", "\nTo: ", "\n> ")
    assert not [member.name for member in found for text in member.texts if any(m in text for m in marks)]
    words = {example.output for example in (*own.train, *own.held_out)}
    assert not words.intersection(panel_texts(config, (*own.train, *own.held_out)))
    assert from_panel_jsonl(to_panel_jsonl(found)), "as a job folder carries it"


# source → (usable at least, at most, EMPTY, machine-written)
SHAPE = {
    "black-t": (50, 75, 0, False),
    "david": (155, 166, 0, False),
    "davis-pete": (0, 10, 0, True),
    "wh-bianchi-s": (35, 71, 121, False),
    "pereira-s": (140, 180, 2, False),
}


@pytest.mark.parametrize("user", SHAPE)
def test_real_mailboxes_keep_their_shape(user: str) -> None:
    path = path_of(user)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    cleaned = clean_mailbox(
        [
            Mail(
                id=f"m{n}",
                thread_id=f"t{n}",
                position=n,
                body_text=row["body"] or "",
                subject=row["subject"] or "",
                sender=row["from"] or "",
            )
            for n, row in enumerate(rows)
        ]
    )
    least, most, empty, machine = SHAPE[user]
    assert least <= len(cleaned.mails) <= most
    assert cleaned.dropped.get(DropReason.EMPTY, 0) == empty
    assert cleaned.machine_written is machine
    marks = ("-----Original Message", "Forwarded by ", "\nTo: ", "\n> ")
    assert not [each.id for each in cleaned.mails if any(mark in each.own_words for mark in marks)]


# What is really there, seen by eye: passwords, dial-in codes, a pager's PIN. Nothing else is replaced.
REPLACED = {
    "black-t": 2, "dasovich-j": 1, "david": 0, "davis-pete": 0, "fossum-d": 2, "pereira-s": 1,
    "wh-bianchi-s": 0, "wh-cerda-j": 1, "wh-emmett-l": 0, "wh-rice-c": 1, "wh-socarides-r": 1,
}  # fmt: skip


@pytest.mark.parametrize("user", REPLACED)
def test_real_mailboxes_lose_only_real_secrets(user: str) -> None:
    mails = read_sent(Mailbox(user, path_of(user)))
    assert sum(redact(each.body_text).count + redact(each.subject).count for each in mails) == REPLACED[user]


# What share of the own words is left out; a look at them found 5–10 % that are no third persons (places,
# institutions with a person's name: Washington, White House).
@pytest.mark.parametrize("user", ["david", "fossum-d", "pereira-s", "wh-rice-c", "dasovich-j"])
def test_real_mailboxes_lose_a_few_percent_of_their_targets(user: str) -> None:
    mails = read_sent(Mailbox(user, path_of(user)))[-500:]
    texts = [each.own_words for each in clean_mailbox(mails).mails]
    names = learn_names(mails, texts)
    chars = sum(end - start for text in texts for start, end in find_third_persons(text, names))
    assert 0.004 < chars / sum(map(len, texts)) < 0.05
