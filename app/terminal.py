"""What a person sees: tables, progress bars, two letters side by side. Nothing here decides anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

from rich import box
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from app.compare_view import NARROWEST
from app.decision_view import decision_parts, missed_lines
from app.plain_text import plain
from store.outbox import DeliveryState
from training.adapter_size import describe_adapter_size
from training.estimate import describe_estimate
from training.mail.secrets import redact
from training.schemas import DataReport, EventLevel, ImportReport, Job, JobEvent, JobStatus, Outcome

if TYPE_CHECKING:
    from app.clean import Cleaned


class PlainConsole(Console):
    """A console that shows strings as they stand: mail, models, jobs and paths hold brackets and worse."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render with every control character replaced that is not the console's own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)


console = PlainConsole()
errors = PlainConsole(stderr=True)
_STATUS_COLOUR = {JobStatus.COMPLETED: "green", JobStatus.FAILED: "red", JobStatus.CANCELLED: "yellow"}
_PHASES = {
    "load": "loading the base",
    "panel": "training references",
    "train": "training",
    "held_out": "measuring on held-out mail",
    "export": "converting",
}


def show_error(message: str) -> None:
    """Print one sentence on standard error."""
    errors.print(Text(message), style="red", soft_wrap=True)


def show_notice(message: str) -> None:
    console.print(Text(message), soft_wrap=True)


def _column(form: str, style: str = "none") -> TextColumn:
    """Return a column of a bar; what stands in it is no markup."""
    return TextColumn(form, style=style, markup=False)


@contextmanager
def bytes_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback `(bytes done, bytes in all)` behind a bar."""
    with Progress(
        _column("{task.description}", "bold"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        console=errors,
    ) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


@contextmanager
def count_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback `(done, in all)` behind a bar."""
    with Progress(
        _column("{task.description}", "bold"),
        BarColumn(),
        _column("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        console=errors,
    ) as progress:
        task = progress.add_task(title, total=1)
        yield lambda done, total: progress.update(task, completed=done, total=max(1, total))


@contextmanager
def steps(title: str) -> Iterator[Callable[[str, str], None]]:
    """Yield a callback `(step, what became of it)`; one line a step, the running one with a spinner."""
    with Progress(
        SpinnerColumn(finished_text=Text("✓", "green")),
        _column("{task.description:<16}"),
        _column("{task.fields[state]}", "dim"),
        TimeElapsedColumn(),
        console=errors,
    ) as progress:
        console_lines: dict[str, int] = {}

        def on_progress(step: str, state: str) -> None:
            if step not in console_lines:
                console_lines[step] = progress.add_task(step, total=1, state=state)  # type: ignore[assignment]
            done = 0 if state.startswith(("starting", "waiting", "registering", "stopping")) else 1
            progress.update(console_lines[step], state=state, completed=done)  # type: ignore[arg-type]

        yield on_progress


@contextmanager
def job_bar() -> Iterator[Callable[[Job, list[JobEvent]], None]]:
    """Yield the callback of `follow_job`: one bar from 0 to 100 % with step, loss and time left."""
    with Progress(
        SpinnerColumn(),
        _column("{task.description:<26}", "bold"),
        BarColumn(bar_width=32),
        _column("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        _column("{task.fields[detail]}", "dim"),
        console=errors,
    ) as progress:
        task = progress.add_task("waiting for a worker", total=100, detail="")

        def on_change(job: Job, events: list[JobEvent]) -> None:
            for event in events:
                if event.type == "message" and event.level is not EventLevel.INFO:
                    progress.console.print(Text(event.message), style="yellow")
            found = next((e.data for e in reversed(events) if e.type == "metrics" and "step" in e.data), None)
            if found:
                phase = str(found.get("phase"))
                progress.update(task, description=_PHASES.get(phase, phase))
                if phase == "train":
                    progress.update(
                        task,
                        detail=f"step {found['step']}/{found['steps']}  loss {found['loss']:.2f}  "
                        f"{found['tokensPerSecond']:.0f} tokens/s  {found['etaSeconds']:.0f} s left",
                    )
                elif phase == "panel":
                    progress.update(
                        task,
                        detail=f"{found['reference']} of {found['references']}, once on this machine  "
                        f"step {found['step']}/{found['steps']}  {found['etaSeconds']:.0f} s left",
                    )
                else:
                    progress.update(task, detail="")
            elif any(e.type == "status" for e in events):
                progress.update(task, description=_doing(job), detail="")
            progress.update(task, completed=job.progress)

        yield on_change


def _doing(job: Job) -> str:
    return {
        JobStatus.PENDING: "waiting for a worker",
        JobStatus.EXTRACTING_DATA: "reading the mail",
        JobStatus.PREPARING_DATA: "preparing the data set",
        JobStatus.TRAINING: "waiting for the GPU pool",
        JobStatus.EVALUATING: "judging the adapter",
        JobStatus.DEPLOYING: "publishing",
    }.get(job.status, job.status.lower())


def show_import(report: ImportReport) -> None:
    added = f"{report.added} added" + (
        f", {report.already_present} already there" if report.already_present else ""
    )
    show_notice(
        f"Read {report.read} messages ({report.format}): {added}, {report.sent} sent by the user, "
        f"in {report.seconds:.1f} s."
    )
    for reason, count in report.broken.items():
        show_notice(f"  skipped {count}: {reason.replace('_', ' ')}")
    for alias in report.aliases_added:
        show_notice(f"  also the user's: {alias}")
    if report.hint:
        console.print(Text(report.hint), style="yellow", soft_wrap=True)


def data_report_table(report: DataReport) -> Table:
    """Return kept and dropped mails by reason, as bars."""
    table = Table(
        box=box.SIMPLE_HEAD, title=f"{report.sent} sent mails", title_justify="left", pad_edge=False
    )
    table.add_column("")
    table.add_column("mails", justify="right")
    table.add_column("")
    longest = max([report.usable, *report.dropped.values(), 1])
    table.add_row(
        "kept", str(report.usable), Text("█" * max(1, round(30 * report.usable / longest)), "green")
    )
    for reason, count in report.dropped.items():
        bar = Text("█" * max(1, round(30 * count / longest)), "red")
        table.add_row(f"dropped: {reason.label}", str(count), bar)
    return table


def show_data_report(report: DataReport) -> None:
    console.print(data_report_table(report))
    if report.eligible:
        show_notice(
            f"{report.train} for training, {report.held_out} held out to judge by (the newest threads)."
        )
    if report.replaced_secrets:
        show_notice(f"{report.replaced_secrets} secrets (keys, card numbers, passwords …) were replaced.")
    if report.masked_third_persons:
        show_notice(
            f"{report.masked_third_persons} names, addresses and numbers of other people are left out of the "
            "training loss."
        )
    if report.languages_sentence:
        show_notice(report.languages_sentence)
    console.print(Text(report.reason), style="green" if report.eligible else "red", soft_wrap=True)
    for sentence in filter(None, (report.instructions, report.chosen)) if report.eligible else ():
        show_notice(sentence)
    if report.estimate is not None and report.eligible:
        estimate = report.estimate
        cost = f", ${estimate.cost:.2f}" if estimate.cost else ""
        show_notice(
            f"Training would take about {_duration(estimate.seconds)} "
            f"({estimate.tokens:,} tokens at {estimate.tokens_per_second:.0f} a second{cost}), "
            + (
                f"by the last {estimate.measured_runs} on {estimate.device}."
                if estimate.measured_runs
                else "a first guess: none of this base model has been measured there."
            )
            + f" The adapter will be about {describe_adapter_size(estimate.adapter_bytes)}."
        )


def show_cleaned(cleaned: Cleaned) -> None:
    """Print one mail: own words plain, secrets replaced; what is cut dimmed, its reason in the margin."""
    explanation = cleaned.explanation
    pieces = [(start, end, "") for start, end in explanation.own]
    pieces += [(span.text_start, span.text_end, span.reason) for span in explanation.cut]
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(justify="right", style="yellow", no_wrap=True)
    table.add_column(overflow="fold")
    position = 0
    for start, end, reason in sorted(pieces):
        # Blank lines between two pieces belong to neither.
        for _ in range(explanation.text.count("\n", position, start) - 1 if position else 0):
            table.add_row("", "")
        piece = explanation.text[start:end].strip("\n")
        for number, line in enumerate((piece if reason else redact(piece).text).split("\n")):
            text = Text(plain(line), style="dim" if reason else "")
            table.add_row(f"{reason} │" if reason and number == 0 else "│" if reason else "", text)
        position = end
    console.print(table)
    colour = "green" if cleaned.kept else "red"
    replaced = explanation.replaced_secrets
    secrets = "1 secret is replaced." if replaced == 1 else f"{replaced} secrets are replaced."
    sentence = f"{cleaned.sentence} {secrets}" if replaced else cleaned.sentence
    console.print(Text(f"\n{sentence}"), style=colour, soft_wrap=True)


def show_jobs(found: list[Job]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("job", "", "status", "outcome", "loss", "created"):
        table.add_column(name, no_wrap=True)
    for job in found:
        status = _status(job) if job.status.is_final else Text(f"{job.status} {job.progress:.0f} %", "cyan")
        created = f"{job.created_at.astimezone():%d %b %H:%M}" if job.created_at else ""
        table.add_row(job.id, f"v{job.version}", status, job.outcome or "", _losses(job), created)
    console.print(table)


def webhooks_line(told: DeliveryState | None) -> str:
    """Say in one line what the app has heard of a job; empty when no webhooks are sent."""
    if told is None:
        return ""
    parts = [f"delivered {told.delivered}", f"waiting {told.waiting}"]
    if told.given_up:
        parts.append(f"given up {told.given_up}")
    if told.last_error:
        parts.append(f"last error {told.last_error}")
    return ", ".join(parts)


def show_job(job: Job, events: list[JobEvent], told: DeliveryState | None = None) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    metrics = job.metrics
    size = f"{job.adapter_size / 1e6:.1f} MB" if job.adapter_size else ""
    rate = f"{metrics.train_tokens_per_second:.0f} a second" if metrics.train_tokens_per_second else ""
    trained = (
        f"{job.training_emails or 0} mails, {metrics.steps} steps, {metrics.train_tokens:,} tokens {rate}"
    )
    rows: list[tuple[str, str | Text]] = [
        ("job", job.id),
        ("user", job.user_id),
        ("status", _status(job)),
        ("outcome", f"{job.outcome or ''}  {metrics.gate}".strip()),
        ("chosen", metrics.chosen),
        ("held-out loss", _losses(job)),
        ("training", trained),
        ("adapter", f"version {job.version}  {job.model_name or ''}  {size}".strip()),
        ("base model", job.base_model),
        ("seconds", "  ".join(f"{stage} {seconds:.1f}" for stage, seconds in job.timings.items())),
        ("device time", describe_estimate(job)),
        ("cost", f"${job.actual_cost or 0:.4f} (estimated ${job.estimated_cost or 0:.4f})"),
        ("error", f"{job.error_code}: {job.error_message}" if job.error_code else ""),
        ("flow run", job.flow_run_id or ""),
        ("webhooks", webhooks_line(told)),
    ]
    for name, value in rows:
        if value:
            table.add_row(name, value)
    console.print(table)
    for part in decision_parts(metrics, console.width):
        console.print(part)
    shown = [e for e in events if e.type != "metrics"]
    if shown:
        console.print()
    for event in shown:
        console.print(Text(f"{_when(event.at)}  {event.message}"), style="dim", soft_wrap=True)


def show_result(job: Job) -> None:
    """Say how a followed job ended: outcome, sentence, and the checks of the gate that it missed."""
    if job.status is JobStatus.COMPLETED:
        colour = "green" if job.outcome is Outcome.PROMOTED else "yellow"
        console.print(Text(f"{job.outcome}: {job.metrics.gate}"), style=colour, soft_wrap=True)
        for line in missed_lines(job.metrics.decision) if job.metrics.decision else ():
            console.print(line, soft_wrap=True)
    elif job.status is JobStatus.CANCELLED:
        console.print(Text(f"Job {job.id} was cancelled; nothing was published."), style="yellow")
    else:
        show_error(job.error_message or f"Job {job.id} failed.")


def show_registered(rows: Sequence[tuple[str, str, str]]) -> None:
    """Print kind, name and state of what a registration made or found."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("", "name", ""):
        table.add_column(title)
    for kind, name, state in rows:
        colour = "dim" if state.startswith("kept") else "green"
        table.add_row(kind, Text(name), Text(state, colour))
    console.print(table)


def show_facts(facts: list[tuple[str, str]]) -> None:
    """Print names and values; long values wrap as the terminal does, so that they can be copied whole."""
    for name, value in facts:
        console.print(Text.assemble((f"{name:<15}", "dim"), value), soft_wrap=True)


def side_by_side(left_title: str, left: str, right_title: str, right: str) -> None:
    """Print two texts beside each other, or below each other on a narrow terminal."""
    width = console.width // 2 - 1

    def panel(title: str, text: str, style: str) -> Panel:
        # Replaced before the frame is drawn: control characters have no width.
        shown = Text(plain(text.strip()))
        beside = width if width >= NARROWEST else None
        return Panel(shown, title=Text(title), width=beside, box=box.ROUNDED, border_style=style)

    panels = [panel(left_title, left, "none"), panel(right_title, right, "green")]
    if width >= NARROWEST:
        console.print(Columns(panels))
        return
    for each in panels:
        console.print(each)


def _losses(job: Job) -> str:
    metrics = job.metrics
    if metrics.held_out_nll_base is None or metrics.held_out_nll_adapter is None:
        return ""
    return f"{metrics.held_out_nll_base:.2f} → {metrics.held_out_nll_adapter:.2f}"


def _status(job: Job) -> Text:
    return Text(job.status, style=_STATUS_COLOUR.get(job.status, "cyan"))


def _when(moment: datetime | None) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}" if moment else ""


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
