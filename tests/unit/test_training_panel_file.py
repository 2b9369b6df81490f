"""The reference panel as a job folder carries it: what comes back is what went in, and no text gets out."""

from __future__ import annotations

import json

import pytest

from tests.bases import persona_mails
from training.errors import ConfigError
from training.panel_file import PanelMember, from_panel_jsonl, to_panel_jsonl

SECRET_WORD = "marsupilami"


def member(name: str) -> PanelMember:
    return PanelMember(name, tuple(persona_mails(3)), tuple(persona_mails(2, first=50)))


def test_members_come_back_with_their_parts_in_their_order() -> None:
    kit, ludo = from_panel_jsonl(to_panel_jsonl([member("kit"), member("ludo")]))
    assert (kit.name, ludo.name) == ("kit", "ludo")
    assert kit.texts == ludo.texts == member("kit").texts
    assert (len(kit.train), len(kit.held_out)) == (3, 2)


def test_mailboxes_that_share_ids_are_told_apart() -> None:
    # Losses are matched by id: one persona's loss must not stand for another's.
    members = from_panel_jsonl(to_panel_jsonl([member("kit"), member("ludo")]))
    ids = [e.id for m in members for e in (*m.train, *m.held_out)]
    threads = {m.name: {e.thread_id for e in (*m.train, *m.held_out)} for m in members}
    assert len(set(ids)) == len(ids) == 10
    assert threads["kit"].isdisjoint(threads["ludo"])


def test_nobody_is_an_empty_file() -> None:
    assert to_panel_jsonl([]) == "" and from_panel_jsonl("") == ()


def test_two_mailboxes_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two mailboxes named 'kit'"):
        to_panel_jsonl([member("kit"), member("kit")])


@pytest.mark.parametrize("name", ["../kit", "/kit", ".kit", "", "a/b", "kit.", "kit\n", "k" * 200])
def test_a_name_that_would_leave_the_cache_is_refused_when_written_and_when_read(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a mailbox"):
        to_panel_jsonl([member(name)])
    line = json.loads(to_panel_jsonl([member("kit")]).splitlines()[0]) | {"persona": name}
    with pytest.raises(ConfigError, match="cannot be the name of a mailbox"):
        from_panel_jsonl(json.dumps(line))


def test_a_broken_line_is_named_by_its_number_and_not_quoted() -> None:
    text = to_panel_jsonl([member("kit")]) + f'{{"persona": "{SECRET_WORD}"\n'
    with pytest.raises(ConfigError, match=r"Line 6 of panel\.jsonl") as refused:
        from_panel_jsonl(text)
    assert SECRET_WORD not in str(refused.value)
