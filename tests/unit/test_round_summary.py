"""What a person reads about a monthly round."""

from __future__ import annotations

from tasks.round_summary import SHOWN_LINES, add_up, to_markdown
from training.schemas import RetrainEnd, RetrainLine, RetrainReport


def line(end: RetrainEnd, user_id: str = "u-anna", **values: object) -> RetrainLine:
    return RetrainLine.model_validate({"user_id": user_id, "end": end, **values})


def test_totals_count_every_end_once() -> None:
    lines = [line(end, minutes=2, cost=0.1) for end in RetrainEnd if end is not RetrainEnd.SKIPPED]
    report = add_up(lines, skipped=4, cohorts=3, busy=2, seconds=90)
    ends = (report.trained, report.kept, report.not_proven, report.failed, report.cancelled, report.running)
    assert ends == (1, 1, 1, 1, 1, 1)
    assert (report.due, report.minutes, report.cost) == (10, 12, 0.6)
    assert report.sentence == (
        "10 due: 1 trained, 1 kept, 1 not proven, 4 skipped, 1 failed, 1 cancelled, 1 still running. "
        "3 cohorts, 12.0 minutes of jobs, $0.60, in 1.5 minutes. "
        "2 more have a job under way and were left alone."
    )


def test_round_with_nobody_due_is_one_sentence_without_a_table() -> None:
    assert to_markdown(RetrainReport(), []) == "Nobody was due."


def test_what_somebody_must_look_at_comes_first() -> None:
    lines = [line(RetrainEnd.TRAINED, "a"), line(RetrainEnd.SKIPPED, "b"), line(RetrainEnd.FAILED, "c")]
    rows = to_markdown(RetrainReport(due=3), lines).splitlines()[4:]
    assert [row.split(" | ")[0] for row in rows] == ["| c", "| a", "| b"]


def test_reason_cannot_break_the_table() -> None:
    page = to_markdown(RetrainReport(due=1), [line(RetrainEnd.FAILED, reason="a | b\nc")])
    assert "| a \\| b c |" in page


def test_long_round_names_the_first_people_and_counts_the_rest() -> None:
    lines = [line(RetrainEnd.SKIPPED, f"u{n}") for n in range(SHOWN_LINES + 5)]
    page = to_markdown(RetrainReport(due=2000), lines)
    assert page.count("| skipped |") == SHOWN_LINES
    assert page.endswith(f"… and {2000 - SHOWN_LINES} more.")
