"""The reference panel: four invented people that go through the cleaner like anybody, and sound apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import yaml

from training.config import CONFIGS
from training.errors import ConfigError
from training.gate_config import GateConfig, load_gate_config
from training.panel import PERSONAS, Persona, panel_members, read_mailbox, read_panel
from training.salutation import strip_identity
from training.schemas import Example
from training.style import profiles, sigma_of, style_distance
from training.voice import fit_judge

FILES = sorted(PERSONAS.glob("*.jsonl"))


@pytest.fixture(scope="module")
def panel() -> tuple[Persona, ...]:
    return read_panel()


def test_there_are_at_least_four_people_with_60_mails_each(panel: tuple[Persona, ...]) -> None:
    assert len(panel) >= 4
    for persona in panel:
        assert len(persona.train) + len(persona.held_out) >= 60
        assert len(persona.held_out) >= 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nobody_in_a_mailbox_exists(path: Path) -> None:
    mails = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(mails) > 0
    for mail in mails:
        for address in (mail["from"], *mail["to"]):
            assert address.rstrip(">").rsplit("@")[-1] in {
                "example.org",
                "example.com",
                "example.net",
            }  # RFC 2606


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_mails_are_in_order_of_time_and_some_answer_others(path: Path) -> None:
    mails = read_mailbox(path)
    times = [mail.sent_at for mail in mails if mail.sent_at is not None]
    assert times == sorted(times) and len(times) == len(mails) == len({mail.id for mail in mails})
    assert sum(mail.is_reply for mail in mails) >= 15
    assert len({mail.thread_id for mail in mails}) < len(mails)


def test_answered_mail_is_context_and_no_word_of_it_is_theirs(panel: tuple[Persona, ...]) -> None:
    for persona in panel:
        examples = (*persona.train, *persona.held_out)
        assert sum(bool(example.input) for example in examples) >= 8
        assert not any("wrote:" in example.output or "\n>" in example.output for example in examples)


def test_no_name_stands_for_two_people_in_the_judge(panel: tuple[Persona, ...]) -> None:
    for persona in panel:
        stripped = " ".join(strip_identity(text, persona.names) for text in persona.texts).lower().split()
        assert not persona.names & set(stripped)


def test_the_voices_are_apart(panel: tuple[Persona, ...]) -> None:
    def distance(first: list[str], second: list[str]) -> float:
        return style_distance(profiles(first), profiles(second))

    halves = {
        persona.name: [
            [strip_identity(text, persona.names) for text in persona.texts[start::2]] for start in (0, 1)
        ]
        for persona in panel
    }
    own = {name: distance(*half) for name, half in halves.items()}
    for one, other in combinations(halves, 2):
        apart = distance(halves[one][0], halves[other][1])
        assert apart > 1.5 * max(own[one], own[other]), (one, other, apart, own)


def test_a_judge_tells_each_from_the_others(panel: tuple[Persona, ...]) -> None:
    names = frozenset().union(*(persona.names for persona in panel))
    for persona in panel:
        others = [other for other in panel if other is not persona]
        judge = fit_judge(
            [example.output for example in persona.train],
            [example.output for other in others for example in other.train],
            [],
            names=names,
        )
        own = np.array(judge.score([example.output for example in persona.held_out]))
        rest = np.array(judge.score([e.output for other in others for e in other.held_out]))
        assert (own[:, None] > rest[None, :]).mean() > 0.9  # area under the ROC curve


def test_the_person_who_is_judged_can_be_left_out() -> None:
    names = [persona.name for persona in read_panel()]
    assert [persona.name for persona in read_panel(without=names[:1])] == names[1:]


def members(references: int, *folders: Path, own: Sequence[Example] = ()) -> list[str]:
    config = GateConfig.model_validate({"panel": folders, "specificity": {"references": references}})
    return [member.name for member in panel_members(config, own)]


def test_the_gate_compares_with_as_many_as_it_is_told(panel: tuple[Persona, ...]) -> None:
    names = [persona.name for persona in panel]
    assert members(4) == names and members(2) == names[:2] and members(0) == []
    with pytest.raises(ConfigError, match=r"specificity\.references is 5.* has 4 mailboxes"):
        members(5)


def test_the_person_who_is_judged_is_not_compared_with_oneself(panel: tuple[Persona, ...]) -> None:
    second = panel[1]
    expected = [persona.name for persona in panel if persona is not second]
    # As a mailbox that was imported here: ids of its own, and not all of the mails.
    own = [example.model_copy(update={"id": "x"}) for example in second.train[::2]]
    assert members(4, own=own) == expected
    assert members(2, own=own) == expected[:2], "another one takes the place"
    assert members(4, own=panel[1].train[:3]) == [persona.name for persona in panel], "a few short mails"


def test_further_mailboxes_are_added_by_a_folder_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    text = (PERSONAS / "kit.jsonl").read_text(encoding="utf-8")
    (tmp_path / "more" / "marsupilami.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "gate.yaml").write_text("panel: [more]\nspecificity: {references: 5}\n")
    config = load_gate_config(tmp_path / "gate.yaml")
    assert config.panel == (tmp_path / "more",)
    found = panel_members(config)
    assert [member.name for member in found][-1] == "marsupilami" and len(found) == 5
    assert found[-1].train and found[-1].held_out


def test_the_shipped_spreads_are_those_of_the_personas(panel: tuple[Persona, ...]) -> None:
    # After a change of features or personas: python -m tests.benchmarks.calibrate_gate --write-sigma
    names = frozenset().union(*(persona.names for persona in panel))
    measured = sigma_of([text for persona in panel for text in persona.texts], names)
    shipped = yaml.safe_load((CONFIGS / "style_sigma.yaml").read_text(encoding="utf-8"))
    assert shipped == pytest.approx(measured, rel=0.02)


def test_a_broken_mailbox_is_named_by_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no \.jsonl"):
        read_panel([tmp_path])
    (tmp_path / "marsupilami.jsonl").write_text('{"message_id": "a"}\n')
    with pytest.raises(ConfigError, match=r"marsupilami\.jsonl, line 1"):
        read_panel([tmp_path])
