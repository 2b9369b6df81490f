"""What the arms wrote, as the gate reads it; and how much of a loss curve a job row keeps."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from tasks import outputs
from tasks.job_folder import HELD_OUT, OUTPUTS, JobFolder
from tasks.measured import thinned
from tasks.outputs import BASE, BASE_TO_TRAINING, CANDIDATE, CURRENT, Answers, Arm, read_outputs
from training.dataset import to_jsonl
from training.errors import StorageError
from training.gate_config import GateConfig
from training.schemas import Example, Generated

CONFIG = GateConfig(outputs=3, for_tests=True)
MAILS = [
    Example(id=f"m{n}", thread_id=f"t{n}", instruction=f"Write about plank {n}", input="Which?", output="x")
    for n in range(3)
]
ARM = Arm(CANDIDATE, "emailai-anna:v1", "sha256:1", tuple(MAILS))


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    found = JobFolder(str(tmp_path), "j-1")
    found.write_text(HELD_OUT, to_jsonl(MAILS))
    return found


def keep(folder: JobFolder, **arms: list[str | None]) -> None:
    keys = {"base": BASE, "to_training": BASE_TO_TRAINING, "candidate": CANDIDATE, "current": CURRENT}
    answers = {
        keys[name]: Answers(
            asked="x", answers=tuple(text and Generated(text=text, stopped=True) for text in texts)
        ).to_json_dict()
        for name, texts in arms.items()
    }
    folder.write_json(OUTPUTS, answers)


def test_answers_are_read_with_the_prompts_that_the_model_saw(folder: JobFolder) -> None:
    keep(folder, base=["a", "b", "c"], to_training=["d", None], candidate=["e", "f", "g"])
    found = read_outputs(folder, CONFIG)
    assert [one.text for one in found.candidate] == ["e", "f", "g"]
    assert found.base[0].prompt == found.candidate[0].prompt == "Write about plank 0\n\nWhich?"
    assert found.current is None and found.base_to_training == ("d",)


def test_a_prompt_that_one_arm_could_not_answer_counts_for_none(folder: JobFolder) -> None:
    keep(
        folder,
        base=["a", "b", "c"],
        to_training=[],
        candidate=["e", None, "g"],
        current=["h", "i", None],
    )
    found = read_outputs(folder, CONFIG)
    assert found.current is not None
    assert [arm[0].text for arm in (found.base, found.candidate, found.current)] == ["a", "e", "h"]
    assert len(found.base) == len(found.candidate) == len(found.current) == 1


@pytest.mark.parametrize(
    "arms",
    [
        {},
        {"base": ["a", "b", "c"], "to_training": []},
        {"base": ["a", "b", "c"], "candidate": ["e", "f", "g"]},
        {"base": ["a", "b", "c"], "to_training": [], "candidate": ["e", "f"]},
    ],
    ids=["nothing", "no candidate", "nothing for the judge", "one too few"],
)
def test_missing_answers_are_no_judgement(folder: JobFolder, arms: dict[str, list[str | None]]) -> None:
    keep(folder, **arms)
    with pytest.raises(StorageError, match=r"does not answer all 3 prompts\. Run `ownvoice retry j-1`"):
        read_outputs(folder, CONFIG)


@pytest.mark.parametrize("torn", ["{", "[]", '{"base": {"asked": 1}}'])
def test_torn_answers_are_asked_for_anew(folder: JobFolder, torn: str) -> None:
    folder.write_text(OUTPUTS, torn)
    assert outputs._what_was_answered(folder) == {}


def test_answers_are_gone_on_from_only_when_everything_that_decides_them_is_the_same() -> None:
    asked = ARM.asked(CONFIG)
    assert replace(ARM, key=CURRENT, name="emailai-anna:v2").asked(CONFIG) == asked, "names decide nothing"
    others = [
        replace(ARM, digest="sha256:2").asked(CONFIG),
        replace(ARM, prompts=tuple(MAILS[:2])).asked(CONFIG),
        ARM.asked(GateConfig(seed=18)),
        ARM.asked(GateConfig(max_tokens=128)),
    ]
    assert len({asked, *others}) == 5


def test_a_long_curve_keeps_its_ends_and_its_shape_in_60_points() -> None:
    curve = [(step, 4.0 - step / 1000) for step in range(1, 1001)]
    kept = thinned(curve, 60)
    assert len(kept) == 60 and (kept[0], kept[-1]) == (curve[0], curve[-1])
    assert {after - before for (before, _), (after, _) in pairwise(kept)} <= {16, 17}
    assert thinned(curve[:60], 60) == tuple(curve[:60])
