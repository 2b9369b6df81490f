"""What a person reads about a monthly round: ids, counts and the jobs' own sentences."""

from __future__ import annotations

from collections.abc import Sequence

from training.schemas import RetrainEnd, RetrainLine, RetrainReport

SHOWN_LINES = 500
"""People named in the summary; it is read in a browser."""
_FIRST = [
    RetrainEnd.FAILED,
    RetrainEnd.CANCELLED,
    RetrainEnd.RUNNING,
    RetrainEnd.NOT_PROVEN,
    RetrainEnd.KEPT,
    RetrainEnd.TRAINED,
    RetrainEnd.SKIPPED,
]
"""Order of the summary's lines: what somebody may have to look at comes first."""


def add_up(
    lines: Sequence[RetrainLine], *, skipped: int, cohorts: int, busy: int, seconds: float
) -> RetrainReport:
    """Return the totals of a round: `lines` of its jobs, and how many people it passed over."""
    ends = [line.end for line in lines]
    return RetrainReport(
        due=len(lines) + skipped,
        cohorts=cohorts,
        trained=ends.count(RetrainEnd.TRAINED),
        kept=ends.count(RetrainEnd.KEPT),
        not_proven=ends.count(RetrainEnd.NOT_PROVEN),
        skipped=skipped,
        failed=ends.count(RetrainEnd.FAILED),
        cancelled=ends.count(RetrainEnd.CANCELLED),
        busy=busy,
        running=ends.count(RetrainEnd.RUNNING),
        minutes=round(sum(line.minutes for line in lines), 1),
        cost=round(sum(line.cost for line in lines), 4),
        seconds=round(seconds, 1),
    )


def to_markdown(report: RetrainReport, lines: Sequence[RetrainLine]) -> str:
    """Return the summary page: one line of totals, then a table of people, failures first."""
    if not lines:
        return report.sentence
    rows = [
        f"| {line.user_id} | {line.end} | {_cell(line.reason)} | {line.minutes:.1f} | ${line.cost:.2f} |"
        for line in sorted(lines, key=lambda line: _FIRST.index(line.end))[:SHOWN_LINES]
    ]
    more = report.due - len(rows)
    return "\n".join(
        [
            report.sentence,
            "",
            "| user | outcome | reason | minutes | cost |",
            "|---|---|---|--:|--:|",
            *rows,
            *([f"\n… and {more} more."] if more > 0 else []),
        ]
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
