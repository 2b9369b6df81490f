"""The reference panel: four invented people that go through the cleaner like anybody, and sound apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from store.importers.message import subject_thread
from training.config import CONFIGS
from training.errors import ConfigError
from training.gate_config import GateConfig, load_gate_config
from training.panel import PERSONAS, Persona, panel_members, panel_texts, read_mailbox, read_panel
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


# ---- mailboxes that are added, as public ones come: no thread ids, null dates, quoted mail of others


def line(number: int, **fields: Any) -> dict[str, Any]:
    """Return one line of a public mailbox; None takes a field away."""
    things = ("gate", "oar", "keel", "mast", "rope", "lamp", "tent", "map", "boat", "paint", "sail")
    mail = {
        "message_id": f"m{number}",
        "date": None,
        "from": "Marsu Pilami <marsu@example.org>",
        "to": ["Robyn <robyn@example.com>"],
        "subject": f"Plank {number}",
        "body": f"The {things[number % 11]} number {number} goes to the {things[number % 7]} by the yard.",
    }
    return {key: value for key, value in (mail | fields).items() if value is not ...}


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in lines), "utf-8")
    return path


def test_a_mailbox_without_thread_ids_has_its_threads_from_subjects_and_people(tmp_path: Path) -> None:
    mails = read_mailbox(
        write(
            tmp_path / "marsupilami.jsonl",
            line(0, subject="The gate"),
            line(1, subject="RE: Fwd: the  Gate"),
            line(2, subject="The gate", to=["ROBYN@example.com"]),
            line(3, subject="The gate", to=["Tom <tom@example.com>"]),
            line(4, subject=""),
            line(5, subject="Re:"),
            line(6, thread_id="t-1"),
        )
    )
    threads = [mail.thread_id for mail in mails]
    assert threads[0] == threads[1] == threads[2]
    assert len(set(threads)) == 5 and threads[6] == "t-1"
    assert "gate" not in threads[0] and "robyn" not in threads[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The gate", "AW: WG: the gate"),
        ("Re[2]: gate", "gate"),
        ("", "Re: "),
        ("gate", "gates"),
        ("回复: gate", "gate"),
    ],
)
def test_subjects_make_one_conversation_where_the_importer_says_so(
    tmp_path: Path, one: str, other: str
) -> None:
    path = write(tmp_path / "marsupilami.jsonl", line(0, subject=one), line(1, subject=other))
    first, second = (mail.thread_id for mail in read_mailbox(path))
    people = ["marsu@example.org", "robyn@example.com"]
    same = subject_thread(one, people, "m0") == subject_thread(other, people, "m1")
    assert (first == second) == same


def test_dates_may_be_missing_null_or_without_a_zone(tmp_path: Path) -> None:
    dates = [..., None, "2001-06-01T08:39:15", "2001-06-01T08:39:15-07:00"]
    path = write(tmp_path / "marsupilami.jsonl", *(line(n, date=date) for n, date in enumerate(dates)))
    found = [mail.sent_at for mail in read_mailbox(path)]
    assert found == [
        None, None, datetime(2001, 6, 1, 8, 39, 15, tzinfo=UTC), datetime(2001, 6, 1, 15, 39, 15, tzinfo=UTC)
    ]  # fmt: skip


def test_a_line_ends_at_its_line_feed_alone(tmp_path: Path) -> None:
    """U+2028 is a letter of JSON text, and a line end to `splitlines`."""
    text = "One line\u2028and another of it"
    path = write(tmp_path / "marsupilami.jsonl", line(0, body=text), line(1))
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert [mail.body_text for mail in read_mailbox(path)] == [text, line(1)["body"]]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"body": ...}, "`body` is missing"),
        ({"body": 7}, "`body` must be text"),
        ({"message_id": ...}, "`message_id` is missing"),
        ({"date": "yesterday"}, "`date` must be"),
        ({"date": 7}, "`date` must be"),
        ({"date": "0001-01-01T00:00:00+14:00"}, "`date` must be"),
        ({"from": None}, "`from` must be text"),
        ({"to": 7}, "`to` must be"),
        ({"to": [7]}, "`to` must be"),
        ({"subject": None}, "`subject` must be text"),
        ({"thread_id": 7}, "`thread_id` must be text"),
    ],
)
def test_the_field_that_is_wrong_is_named_and_no_word_of_the_mail(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    path = write(tmp_path / "marsupilami.jsonl", line(0), line(1, **fields))
    with pytest.raises(ConfigError) as told:
        read_mailbox(path)
    assert str(told.value).startswith(f"marsupilami.jsonl, line 2, is no mail of a reference panel: {words}")
    assert "yesterday" not in str(told.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"holds no mail.*take it out"),
        (b"\n \n", r"holds no mail"),
        (b"{\n", r"line 1, is no mail of a reference panel: it is no JSON object"),
        (b"[]\n", r"it is no JSON object"),
        ("\u00e9".encode("latin-1"), r"is not UTF-8 text.*Save it as UTF-8"),
    ],
)
def test_a_file_that_is_no_mailbox_is_refused_with_a_sentence(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "marsupilami.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"marsupilami\.jsonl.*{words}"):
        read_panel([tmp_path])


def test_a_mailbox_that_cannot_be_opened_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "marsupilami.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"marsupilami\.jsonl .*cannot be read \(Is a directory\)"):
        read_panel([tmp_path])


def test_a_large_mailbox_has_no_more_mails_than_the_personas(
    tmp_path: Path, panel: tuple[Persona, ...]
) -> None:
    """Else one voice would be most of what the judge takes for other people, and a stronger opponent."""
    write(tmp_path / "marsupilami.jsonl", *map(line, range(400)))
    [found] = read_panel([tmp_path])
    assert len(found.train) == max(len(persona.train) for persona in panel)
    assert len(found.held_out) == max(len(persona.held_out) for persona in panel)
    assert found.train[-1].id == "m339" and found.held_out[-1].id == "m399", "the newest of each part"


def test_a_person_is_known_by_mails_that_the_panel_does_not_use(tmp_path: Path) -> None:
    write(tmp_path / "marsupilami.jsonl", *map(line, range(400)))
    [found] = read_panel([tmp_path])
    unused = set(found.known) - set(found.texts)
    own = [
        Example(id=f"x{n}", thread_id=f"x{n}", instruction="Write", output=text)
        for n, text in enumerate(sorted(unused)[:60])
    ]
    assert "marsupilami" in members(5, tmp_path) and "marsupilami" not in members(5, tmp_path, own=own)
    assert "marsupilami" not in members(5, tmp_path, own=own[:12]), "twelve new mails, all of them there"
    config = GateConfig.model_validate({"panel": [tmp_path]})
    assert not set(panel_texts(config, own)) & set(found.known)


def test_a_mailbox_with_hardly_any_usable_mail_is_no_opponent(tmp_path: Path) -> None:
    write(tmp_path / "bianchi.jsonl", *map(line, range(30)), *(line(n, body="") for n in range(30, 90)))
    with pytest.raises(
        ConfigError, match=r"references is 5.* has 4 mailboxes.* 20 to train on \(bianchi has 15\)"
    ):
        members(5, tmp_path)
    assert len(members(4, tmp_path)) == 4


def test_a_broken_mailbox_is_named_by_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no \.jsonl"):
        read_panel([tmp_path])
    (tmp_path / "marsupilami.jsonl").write_text('{"message_id": "a"}\n')
    with pytest.raises(ConfigError, match=r"marsupilami\.jsonl, line 1"):
        read_panel([tmp_path])
