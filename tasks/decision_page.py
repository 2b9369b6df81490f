"""The page of a decision in the Prefect UI: outcome and sentence, two pictures, every check. CPU side."""

from __future__ import annotations

from prefect.artifacts import create_markdown_artifact

from tasks.decision_plots import as_image, draw_loss, draw_voice
from tasks.progress import not_essential
from training.decision_words import (
    ONLY_SHOWN,
    MetricWords,
    Verdict,
    loss_series,
    say_held_out,
    voice_scores,
    words_of_metrics,
)
from training.schemas import GateDecision, Job, JobMetrics


def show_decision(job: Job, decision: GateDecision) -> None:
    """Show the decision as the artifact `decision-<job id>`, with what the training cost.

    The job's numbers are read from its row, so they must be recorded before.
    """
    cost = f"Cost: ${job.actual_cost or 0:.4f} (estimated ${job.estimated_cost or 0:.4f})."
    with not_essential("The decision"):
        create_markdown_artifact(
            key=f"decision-{job.id}",
            markdown=f"{decision_markdown(decision, job.metrics)}\n\n{cost}",
            description="Does the adapter go live?",
        )


def decision_markdown(decision: GateDecision, metrics: JobMetrics) -> str:
    """Return the page: numbers and our own words only, so that Prefect may keep it in clear."""
    series, scores, words = loss_series(metrics), voice_scores(decision), words_of_metrics(decision)
    only_shown = any(row.verdict is Verdict.SHOWN for metric in words for row in metric.rows)
    parts = [
        f"**{decision.outcome}.** {decision.reason}",
        as_image(draw_loss(series), "Loss by step") if series else "",
        as_image(draw_voice(scores), "Voice score between base and person") if scores else "",
        _table(words) if words else "",
        ONLY_SHOWN if only_shown else "",
        say_held_out(metrics),
        metrics.chosen,
    ]
    return "\n\n".join(part for part in parts if part)


def _table(words: tuple[MetricWords, ...]) -> str:
    """Return the checks, verdict first: Prefect's older UI cuts a wide table off at its right."""
    lines = ["| | check | value | must be |", "|---|---|--:|--:|"]
    for metric in words:
        lines.append(
            f"| {_verdict(metric.verdict)} | **{_cell(metric.title)}** | | {_whole(metric.weight)} |"
        )
        lines += [
            f"| {_verdict(row.verdict)} | {_cell(row.label)} | {row.value} | {_whole(row.must_be)} |"
            for row in metric.rows
        ]
    return "\n".join(lines)


def _verdict(verdict: Verdict | None) -> str:
    return _whole(f"{verdict.mark} {verdict}") if verdict else "–"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _whole(text: str) -> str:
    """Keep a few words on one line: narrow columns wrap at every space."""
    return text.replace(" ", "\u00a0")
