"""A decision in the terminal: eighty columns and no colour are enough to read it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from app import terminal
from app.decision_view import NARROWEST, checks_table, decision_parts, loss_plot, missed_lines, voice_ruler
from tests.decisions import check, decision, metrics, refused
from training.decision_words import LossSeries, VoiceScores, loss_series, words_of_metrics
from training.schemas import CheckRole, Job, JobMetrics, JobStatus, Outcome

TABLE = """\
    check                                                 value  must be
 ──────────────────────────────────────────────────────────────────────────────
 ✗  Skill: predicts the person's own mail                        required
 ✗    gain over the base (nat per token)                 0.0996  at least 0.10
 ✓    lower bound of the gain over the base                0.04  above 0
 –  Specificity: this person, not just mail                      not measured
 ·  Voice: a judge of authorship takes it for theirs             no vote
 ·    voice score                                          0.62  at least 0.50
 ✗  Style: has the person's habits                               one vote
 ✗    share of the style gap that is closed                0.30  at least 0.50
 ✗  No harm: leaks, copies, overfitting, obedience               required
 ✗    number of outputs that copy a training mail             2  at most 1
 ✓    recall of the prompts' names, numbers and dates      0.02  at least -0.05
      against the base"""
LOSS = """\
loss by step, nat per reply token
 4.1 ◆
     ┄┄┄┄┄•••••┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄ base 4.00
               ••••••
                    •••••
 3.3                     ◆••••                ◆
     ─────────────────────────••••───────────── adapter 3.20
                                  •••••
                                       •••••
 2.6                                        •••
     0                                   step 8
     • training   ◆ validation   ─ held-out mail"""
RULER = """\
voice score, by a judge of authorship
                                  ▼ adapter 0.62
╌╌╌╌╌╌╌╌╌╌├───────────────────┊──────────────────┤╌╌╌╌╌╌╌╌╌╌
                                     ▲ in use 0.70
       base 0           at least 0.50        person 1"""


def printed(*parts: Any, width: int = 80) -> str:
    """Return what a file or a pipe gets, without the blanks at the ends of lines."""
    console = Console(file=io.StringIO(), width=width)
    for part in parts:
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().split("\n")]
    assert max(map(len, lines)) <= width
    return "\n".join(lines).strip("\n")


def job(**fields: Any) -> Job:
    values: dict[str, Any] = {
        "id": "j-1",
        "user_id": "u-anna",
        "version": 2,
        "base_model": "smollm2-135m",
        "status": JobStatus.COMPLETED,
        "outcome": Outcome.KEPT_CURRENT,
    }
    return Job.model_validate(values | fields)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    shown = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=shown, width=80))
    monkeypatch.setattr(terminal, "errors", Console(file=shown, width=80))
    return shown


def test_the_table_of_checks_at_eighty_columns() -> None:
    assert printed(checks_table(words_of_metrics(refused()))) == TABLE


def test_the_loss_by_step_with_held_out_losses_as_lines() -> None:
    series = loss_series(metrics())
    assert series is not None
    assert printed(loss_plot(series, 60)) == LOSS


def test_the_ruler_between_base_and_person() -> None:
    scores = VoiceScores(candidate=0.62, current=0.7, must_be=0.5, only_shown=False)
    assert printed(voice_ruler(scores, 60)) == RULER


@pytest.mark.parametrize("width", [NARROWEST, 60, 80, 200])
def test_every_part_keeps_to_the_width(width: int) -> None:
    found = metrics(decision=refused(), held_out_nll_current=3.2)
    text = printed(*decision_parts(found, width), width=width)
    assert "adapter 3.20" in text and "in use 3.20" in text and "person 1" in text


def test_a_narrow_terminal_gets_the_checks_and_no_pictures() -> None:
    text = printed(*decision_parts(metrics(decision=refused()), NARROWEST - 1), width=NARROWEST - 1)
    assert "at least 0.50" in text and "step 8" not in text and "person 1" not in text


@pytest.mark.parametrize("score", [-9.5, -0.25, 0.0, 1.0, 1.25, 44.0])
def test_every_score_is_marked_and_named_within_the_ruler(score: float) -> None:
    scores = VoiceScores(candidate=score, current=score, must_be=0.5, only_shown=False)
    above, _, below, _ = printed(voice_ruler(scores, 60), width=60).split("\n")[1:]
    assert f"{score:.2f}" in above and above.count("▼") == 1
    assert f"{score:.2f}" in below and below.index("▲") == above.index("▼")


def test_losses_in_one_row_are_named_from_the_highest_down() -> None:
    series = loss_series(metrics(held_out_nll_base=3.21, held_out_nll_adapter=3.2, held_out_nll_current=3.19))
    assert series is not None
    lines = [line for line in printed(loss_plot(series, 60)).split("\n") if " 3." in line[5:]]
    assert [line.split()[-2:] for line in lines] == [["base", "3.21"], ["adapter", "3.20"], ["use", "3.19"]]


def test_a_curve_that_is_one_point_is_drawn() -> None:
    series = LossSeries(training=((3, 2.0),), validation=(), held_out=())
    assert printed(loss_plot(series, 60)).count("•") == 2  # the point and the legend


def test_a_job_without_a_decision_shows_nothing_of_one() -> None:
    assert list(decision_parts(JobMetrics(held_out_nll_base=4.0, held_out_nll_adapter=3.0), 80)) == []


def test_missed_lines_leave_out_what_decides_nothing() -> None:
    found = decision(
        check("voice", 0.1, ">=", 0.5, metric="voice", role=CheckRole.SHOWN),
        check("copies", 2, "<=", 1, metric="harm", label="the number of copies"),
    )
    assert [line.plain for line in missed_lines(found)] == ["✗ number of copies: 2, must be at most 1"]


def test_a_followed_job_ends_with_the_sentence_and_what_was_missed(screen: io.StringIO) -> None:
    terminal.show_result(job(metrics=metrics(decision=refused(), gate=refused().reason)))
    assert screen.getvalue().splitlines() == [
        f"KEPT_CURRENT: {refused().reason}",
        "✗ gain over the base (nat per token): 0.0996, must be at least 0.10",
        "✗ share of the style gap that is closed: 0.30, must be at least 0.50",
        "✗ number of outputs that copy a training mail: 2, must be at most 1",
    ]


def test_a_followed_job_of_before_ends_with_its_sentence_alone(screen: io.StringIO) -> None:
    terminal.show_result(job(outcome=Outcome.PROMOTED, metrics=JobMetrics(gate="Better.")))
    assert screen.getvalue() == "PROMOTED: Better.\n"


def test_show_has_outcome_sentence_checks_pictures_and_what_was_chosen(screen: io.StringIO) -> None:
    found = metrics(decision=refused(), gate="It stays.", chosen="Rank 8 for 96 mails.")
    terminal.show_job(job(metrics=found), [])
    shown = screen.getvalue()
    order = [
        "KEPT_CURRENT  It stays.",
        "Rank 8 for 96 mails.",
        "✗    gain over",
        "loss by step",
        "▼ adapter 0.62",
    ]
    assert sorted(order, key=shown.index) == order
    assert "\x1b" not in shown


def test_show_still_shows_a_job_of_before(screen: io.StringIO) -> None:
    before = {"heldOutNllBase": 4.0, "heldOutNllAdapter": 3.0, "gate": "Better."}
    terminal.show_job(job(metrics=before), [])
    assert "4.00 → 3.00" in screen.getvalue() and "must be" not in screen.getvalue()


def test_json_carries_every_check() -> None:
    told = job(metrics=metrics(decision=refused())).to_json_dict()["metrics"]["decision"]
    assert (told["outcome"], len(told["checks"])) == ("KEPT_CURRENT", len(refused().checks))
    assert told["checks"][0] == {
        "metric": "skill",
        "name": "gain",
        "value": 0.0996,
        "limit": 0.1,
        "relation": ">=",
        "met": False,
        "role": "hard",
        "label": "the gain over the base (nat per token)",
    }
