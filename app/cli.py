"""`ownvoice`: the command line. Exit codes: 0 ok, 1 failed, 2 usage, 3 refused (not eligible, no consent)."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from app import erasure, local, terminal
from app.clean import clean_file
from app.compare import compare_versions
from app.compare_page import default_path, require_writable, write_page
from app.compare_view import show_comparison
from app.data import check_user, import_for
from app.demo import run_demo
from app.deploy import PoolType, register_deployments, registered_things
from app.doctor import examine
from app.matrix import cross_matrix, require_place, show_matrix, write_markdown
from app.plain_text import plain
from app.retraining import follow_round, scan_now, start_round
from app.rollback import roll_back
from app.session import Session
from app.training_jobs import cancel_job, follow_job, retry_job, start_job
from store import jobs, outbox, users
from store.database import migrate, open_database
from training.dataset import prompt_messages
from training.errors import ConfigError, OwnvoiceError
from training.schemas import GenerateOptions, Job, JobStatus, RetrainMode

app = typer.Typer(
    name="ownvoice",
    help="Train, prove and serve one small voice adapter per person.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
db_app = typer.Typer(help="The database schema.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(db_app, name="db")

REFUSED_CODES = {"NOT_ENOUGH_MAIL", "NO_CONSENT"}
FINAL_CODES = REFUSED_CODES | {"ADAPTER_REFUSED", "TRAINING_DIVERGED", "CONFIG"}
"""Failures that the same job would meet again; a retry is not offered."""
UserArgument = Annotated[str, typer.Argument(metavar="USER", help="The user's id or e-mail address.")]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or its first 6 characters.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else.")]
Follow = Annotated[bool, typer.Option("--follow", help="Stay until the job has ended.")]
Config = Annotated[str | None, typer.Option(help="Training preset in configs/train/, or a YAML file.")]
Mode = Annotated[
    RetrainMode | None, typer.Option(help="From what a retrain learns; else what the preset says.")
]


@app.command()
def demo(
    mbox: Annotated[Path | None, typer.Option(help="Mailbox to use instead of the sample.")] = None,
    user: Annotated[str | None, typer.Option(help="Whose mailbox it is (e-mail address).")] = None,
) -> None:
    """Train and show one person's voice on this machine, from a mailbox to two e-mails side by side."""
    job = run_demo(Session(), mbox, user)
    raise typer.Exit(_exit_code(job))


@app.command()
def up() -> None:
    """Start the local stack: PostgreSQL, the Prefect server and two workers."""
    with terminal.steps("stack") as on_step:
        stack = local.up(Session().settings, on_step)
    terminal.show_notice(f"Prefect UI: {stack.ui_url}")


@app.command()
def down() -> None:
    """Stop the local stack."""
    with terminal.steps("stack") as on_step:
        stopped = local.down(Session().settings, on_step)
    if not stopped:
        terminal.show_notice("Nothing was running.")


@app.command()
def status(as_json: Json = False) -> None:
    """Show whether the local stack runs; exit code 1 when it does not or a part of it died."""
    stack = local.status(Session().settings)
    if as_json:
        _print_json(
            {"running": stack is not None and stack.healthy, "stack": stack.to_json_dict() if stack else None}
        )
    elif stack is None:
        terminal.show_notice("The local stack is not running. Start it with `ownvoice up`.")
    else:
        for process in stack.processes:
            terminal.show_notice(
                f"{process.name:<16} {'died' if process.name in stack.dead else 'runs'}  pid {process.pid}"
            )
        if stack.database_url is not None:
            terminal.show_notice(
                f"{'database':<16} {'died' if 'database' in stack.dead else 'runs'}  embedded PostgreSQL"
            )
        terminal.show_notice(f"Prefect UI: {stack.ui_url}")
        if stack.dead:
            terminal.show_error(f"{', '.join(stack.dead)} died. `ownvoice up` starts it again.")
    raise typer.Exit(0 if stack is not None and stack.healthy else 1)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is missing, and the command that brings it."""
    findings = []
    for finding in examine(Session()):
        findings.append(finding)
        if not as_json:
            mark = Text("✓", "green") if finding.ok else Text("✗", "red")
            terminal.console.print(
                mark, f"{finding.name:<15}", finding.detail, soft_wrap=True, highlight=False
            )
            if finding.remedy:
                terminal.console.print(f"  {'':<15} → {finding.remedy}", soft_wrap=True, highlight=False)
    if as_json:
        _print_json([finding._asdict() for finding in findings])
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


@app.command()
def deploy(
    api_url: Annotated[str | None, typer.Option(help="Prefect API, ends in /api.")] = None,
    pool_type: Annotated[PoolType | None, typer.Option(help="Type of pools that do not exist yet.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Trainings at once: the GPU pool's limit.")] = None,
    as_json: Json = False,
) -> None:
    """Register pools, queues, limits, automations and deployments on a Prefect server; safe to repeat."""
    with nullcontext() if as_json else terminal.console.status("registering …"):
        report = register_deployments(Session().settings, api_url=api_url, pool_type=pool_type, gpus=gpus)
    if as_json:
        _print_json(report)
    else:
        terminal.show_registered(registered_things(report))
        terminal.show_notice(f"{report['api_url']} is up to date ({report['seconds']:.0f} s).")


@db_app.command("upgrade")
def db_upgrade() -> None:
    """Bring the database's schema up to date; safe to repeat, and on a database the app made."""
    settings = Session().settings
    with open_database(local.database_url(settings), sent_column=settings.sent_column) as db:
        applied = migrate(db)
    terminal.show_notice(f"Applied {', '.join(applied)}." if applied else "The database is up to date.")


@app.command("import")
def import_mail(
    path: Annotated[Path, typer.Argument(help="mbox, Maildir, folder of .eml files, or JSON lines.")],
    user: Annotated[str, typer.Option(help="Whose mailbox it is (e-mail address).")],
    alias: Annotated[list[str] | None, typer.Option(help="Another address the user writes from.")] = None,
    format: Annotated[str, typer.Option(help="auto, mbox, maildir, eml or jsonl.")] = "auto",
    consent: Annotated[
        bool | None,
        typer.Option(
            "--consent/--no-consent",
            help="Record whether the user agrees to voice training. Without it, importing a new user's "
            "mailbox counts as agreement, and a known user's answer stays as it is.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read a mailbox into the store. Importing twice adds nothing."""
    session = Session()
    with nullcontext(None) if as_json else terminal.bytes_bar("importing") as on_bytes:
        person, report, is_new = import_for(
            session,
            user,
            path,
            format=format,
            aliases=alias or (),
            consent=consent,
            on_progress=on_bytes,
        )
    if as_json:
        _print_json({"userId": person.id, **report.to_json_dict()})
        return
    terminal.show_import(report)
    if is_new:
        agreed = (
            "agrees to voice training" if person.voice_consent_at else "has not agreed to voice training yet"
        )
        terminal.show_notice(f"{person.email} is new here (user {person.id}) and {agreed}.")
    if report.sent:
        terminal.show_notice(f"Next: ownvoice check {person.email}")


@app.command()
def check(user: UserArgument, config: Config = None, as_json: Json = False) -> None:
    """Show what training would use and take; trains nothing. Exit code 3 when it is not enough."""
    with nullcontext(None) if as_json else terminal.count_bar("cleaning") as on_count:
        report = check_user(Session(), user, config=config, on_progress=on_count)
    if as_json:
        _print_json(report.to_json_dict())
    else:
        terminal.show_data_report(report)
    raise typer.Exit(0 if report.eligible else 3)


@app.command()
def clean(
    file: Annotated[
        Path, typer.Argument(metavar="FILE|-", help="An .eml file or one JSON line; - is standard input.")
    ],
    user: Annotated[
        str | None,
        typer.Option(help="Whose mail it must be; also cuts the endings that their imported mail repeats."),
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show what is kept of one mail, and what is cut and why. Exit code 3 when the mail is dropped."""
    cleaned = clean_file(file, user=user, config=config)
    _print_json(cleaned.as_dict()) if as_json else terminal.show_cleaned(cleaned)
    raise typer.Exit(0 if cleaned.kept else 3)


@app.command()
def train(
    user: UserArgument,
    follow: Follow = False,
    config: Config = None,
    mode: Mode = None,
    as_json: Json = False,
) -> None:
    """Train a user's adapter, judge it and, when it is proven, publish it."""
    session = Session()
    _started(session, start_job(session, user, config=config, mode=mode), follow, as_json)


@app.command()
def retry(job: JobArgument, follow: Follow = False, as_json: Json = False) -> None:
    """Take a failed job up again from its last finished stage."""
    session = Session()
    _started(session, retry_job(session, job), follow, as_json)


@app.command()
def cancel(job: JobArgument, as_json: Json = False) -> None:
    """Stop a job; nothing of it is published."""
    with nullcontext() if as_json else terminal.console.status("stopping …"):
        ended = cancel_job(Session(), job)
    if as_json:
        _print_json(ended.to_json_dict())
    elif ended.status is JobStatus.CANCELLED:
        terminal.show_notice(f"Job {ended.id} is cancelled.")
    else:
        terminal.show_error(
            f"Job {ended.id} is still {ended.status}; it stops at its next step: ownvoice show {ended.id}"
        )
    raise typer.Exit(0 if ended.status is JobStatus.CANCELLED else 1)


@app.command()
def rollback(
    user: UserArgument,
    to: Annotated[
        int | None, typer.Option("--to", metavar="V", help="Which version; else the one before.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make an earlier version of a user's adapter active again, after proving that it still serves."""
    with nullcontext() if as_json else terminal.errors.status("verifying …"):
        result = roll_back(Session(), user, to)
    if as_json:
        _print_json(result.to_json_dict())
    else:
        terminal.show_notice(f"{result.old_model} → {result.new_model}")


@app.command()
def erase(
    user: UserArgument,
    keep_mail: Annotated[bool, typer.Option("--keep-mail", help="Keep the user and the mail.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Erase a user: adapters in every engine, job folders, mail and rows; prints the receipt."""
    session = Session()
    user_id = erasure.find_erasable(session, user)
    if not erasure.may_erase(session, user_id, keep_mail=keep_mail, yes=yes):
        raise typer.Exit(3)
    with nullcontext() if as_json else terminal.errors.status("erasing …"):
        receipt = erasure.erase(session, user_id, keep_mail=keep_mail)
    _print_json(receipt.to_json_dict()) if as_json else erasure.show_receipt(receipt)
    raise typer.Exit(0 if receipt.complete else 1)


@app.command()
def scan(as_json: Json = False) -> None:
    """Tell users whose voice can be trained, and make jobs for those with 100 new mails."""
    with nullcontext() if as_json else terminal.errors.status("scanning …"):
        report = scan_now(Session())
    _print_json(report.to_json_dict()) if as_json else terminal.show_notice(report.sentence)


@app.command("retrain-due")
def retrain_due(
    mode: Annotated[RetrainMode, typer.Option(help="From what a retrain learns.")] = RetrainMode.REPLAY,
    follow: Annotated[bool, typer.Option("--follow", help="Stay until the round has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Retrain everybody whose next training is due; the same as the daily schedule does."""
    session = Session()
    run_id = start_round(session, mode)
    if not follow:
        url = session.orchestrator.ui_url(run_id)
        _print_json({"flowRunId": run_id, "url": url}) if as_json else terminal.show_notice(f"Started: {url}")
        return
    with nullcontext() if as_json else terminal.errors.status("retraining who is due …"):
        report = follow_round(session.orchestrator, run_id)
    _print_json(report.to_json_dict()) if as_json else terminal.show_notice(report.sentence)


@app.command("jobs")
def list_jobs(
    user: Annotated[str | None, typer.Argument(metavar="[USER]", help="Only this user's.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: Json = False,
) -> None:
    """List the newest jobs."""
    session = Session()
    found = jobs.list_jobs(session.db, users.find_user(session.db, user).id if user else None, limit)
    if as_json:
        _print_json([job.to_json_dict() for job in found])
    elif found:
        terminal.show_jobs(found)
    else:
        terminal.show_notice("There are no jobs yet. Start one with `ownvoice train USER`.")


@app.command()
def show(job: JobArgument, as_json: Json = False) -> None:
    """Show one job: its numbers, its outcome with the reason, and its events."""
    session = Session()
    found = jobs.find_job(session.db, job)
    events = jobs.events(session.db, found.id)
    told = outbox.delivery_state(session.db, found.id) if session.settings.webhook_url else None
    if as_json:
        webhooks = told.to_json_dict() if told else None
        listed = [event.to_json_dict() for event in events]
        _print_json({**found.to_json_dict(), "webhooks": webhooks, "events": listed})
    else:
        terminal.show_job(found, events, told)


@app.command()
def write(
    user: UserArgument,
    instruction: Annotated[
        str, typer.Argument(help='For example: "Write an email about: the invoice is late"')
    ],
    base: Annotated[bool, typer.Option("--base", help="Show the base model's answer beside it.")] = False,
    context: Annotated[str, typer.Option(help="The message to answer.")] = "",
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same words.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=2048)] = 256,
    as_json: Json = False,
) -> None:
    """Write an e-mail with the user's active adapter."""
    session = Session()
    person = users.find_user(session.db, user)
    active = jobs.current_adapter(session.db, person.id)
    if active is None or person.ai_model is None:
        raise OwnvoiceError(
            f"{person.email} has no adapter yet. Train one with `ownvoice train {person.email} --follow`."
        )
    options = GenerateOptions(seed=seed, max_tokens=max_tokens)
    messages = prompt_messages(instruction, context)
    with (
        nullcontext() if as_json else terminal.errors.status("writing …"),
        session.serving(active.base_model) as engine,
    ):
        own = engine.generate(person.ai_model, messages, options).text
        unlearnt = engine.generate(None, messages, options).text if base else None
    if as_json:
        _print_json({"model": person.ai_model, "text": own, **({"base": unlearnt} if base else {})})
    elif unlearnt is not None:
        terminal.side_by_side("base model", unlearnt, person.ai_model, own)
    else:
        print(plain(own.strip()))


@app.command()
def compare(
    user: UserArgument,
    versions: Annotated[
        str | None,
        typer.Option(metavar="V,V", help="Which, e.g. 2,3; else the one in use and the one before."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts, one a line; else fixed neutral ones.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the report goes; else OWNVOICE_HOME/reports.")
    ] = None,
    scores: Annotated[
        bool, typer.Option("--scores/--no-scores", help="Measure the answers against the user's own mail.")
    ] = True,
    max_tokens: Annotated[int, typer.Option(min=1, max=2048)] = 256,
    as_json: Json = False,
) -> None:
    """Show the base, the adapter in use and the one before it side by side, with their scores."""
    session, now = Session(), datetime.now()
    person = users.find_user(session.db, user)
    page = html or default_path(session.settings.reports, person.id, now)
    if html is not None:
        require_writable(html)
    with nullcontext(None) if as_json else terminal.count_bar("writing") as on_count:
        comparison = compare_versions(
            session,
            person.id,
            versions=versions,
            prompts=prompts,
            scores=scores,
            max_tokens=max_tokens,
            on_progress=on_count,
        )
    write_page(comparison, page, now)
    if as_json:
        _print_json({**comparison.to_json_dict(), "html": str(page)})
    else:
        show_comparison(comparison, terminal.console)
        terminal.show_notice(f"\nReport: {page}")


@app.command()
def evaluate(
    who: Annotated[list[str], typer.Argument(metavar="USER...", help="Ids or e-mail addresses.")],
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Every user's adapter on every user's held-out mail.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Write the matrix as Markdown, too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure adapters on mail that they never saw, in this process.

    Exit code 1 when a diagonal loses; 0 also when no mailbox is large enough to decide.
    """
    if not matrix:
        raise ConfigError("What is to be measured? The cross matrix: ownvoice evaluate --matrix USER USER")
    if out is not None:
        require_place(out)
    say = None if as_json else lambda step: terminal.errors.print(step, style="dim", highlight=False)
    with nullcontext(None) if as_json else terminal.count_bar("measuring") as on_count:
        found = cross_matrix(Session(), who, on_progress=on_count, on_step=say)
    if as_json:
        _print_json({**found.to_json_dict(), "diagonalWins": found.verdict, "sentence": found.sentence})
    else:
        show_matrix(found, terminal.console)
    if out is not None:
        try:
            write_markdown(found, out)
        except ConfigError as exc:  # what was measured is shown already, as the only thing on standard output
            terminal.show_error(str(exc))
            raise typer.Exit(exc.exit_code) from None
        if not as_json:
            terminal.show_notice(f"Written to {out}.")
    raise typer.Exit(1 if found.lost else 0)


def _started(session: Session, job: Job, follow: bool, as_json: bool) -> None:
    """Follow a job that was just started, or say how to; ends with the exit code of its outcome."""
    if follow:
        try:
            with _silent() if as_json else terminal.job_bar() as on_change:
                job = follow_job(session, job.id, on_change)
        except KeyboardInterrupt:
            terminal.errors.print(
                f"The job goes on. See it: ownvoice show {job.id}   Stop it: ownvoice cancel {job.id}"
            )
            raise typer.Exit(130) from None
    if as_json:
        _print_json(job.to_json_dict())
    elif follow:
        terminal.show_result(job)
        if job.status is JobStatus.FAILED and job.error_code not in FINAL_CODES:
            terminal.show_notice(f"Try again from its last finished stage: ownvoice retry {job.id}")
    else:
        terminal.show_notice(
            f"Job {job.id} (version {job.version}) is {job.status}. See it with: ownvoice show {job.id}"
        )
    raise typer.Exit(_exit_code(job) if follow else 0)


@contextmanager
def _silent() -> Iterator[Any]:
    yield lambda job, events: None


def _exit_code(job: Job) -> int:
    """0 for a completed job whatever the gate decided, 3 for a refused one, 1 for any other end."""
    if job.status is JobStatus.COMPLETED:
        return 0
    return 3 if job.error_code in REFUSED_CODES else 1


def _print_json(value: Any) -> None:
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
    print(json.dumps(value, indent=2, ensure_ascii=encoding != "utf8"))


def _write_what_can_be_written() -> None:
    """Let an output without umlauts, or a file name that is no text, cost a sign and not the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _flushed() -> Iterator[None]:
    """Write what is buffered while an error can still be told: at the end of Python it is a traceback."""
    try:
        yield
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()


def main() -> None:
    """Run the command line; every error that is meant for a person is one sentence, not a traceback."""
    _write_what_can_be_written()
    try:
        with _flushed():
            app()
    except OwnvoiceError as exc:
        if "--json" in sys.argv:
            _print_json({"error": {"code": exc.code, "message": str(exc)}})
        terminal.show_error(str(exc))
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        terminal.show_error("Interrupted.")
        sys.exit(130)
    except BrokenPipeError:
        _leave_standard_output()
        sys.exit(1)
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        _leave_standard_output()
        terminal.show_error("The output cannot be written: no space is left on the device.")
        sys.exit(1)


def _leave_standard_output() -> None:
    """Let the rest go nowhere: Python writes what is buffered once more when it ends."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)


if __name__ == "__main__":
    main()
