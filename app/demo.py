"""`ownvoice demo`: from a mailbox to e-mails in its owner's voice, on a machine with nothing prepared."""

from __future__ import annotations

from pathlib import Path

from rich.rule import Rule
from rich.text import Text

from app import local, terminal
from app.data import check_user, import_for
from app.session import Session
from app.training_jobs import follow_job, start_job
from store import users
from training.dataset import NEUTRAL_INSTRUCTIONS, prompt_messages
from training.errors import ConfigError, NotEnoughMail, UnreadableMailbox
from training.schemas import GenerateOptions, Job, JobStatus
from training.settings import PROJECT_ROOT

SAMPLE_MAILBOX = PROJECT_ROOT / "samples" / "merrin.mbox"
SAMPLE_EMAIL = "merrin.tolquay@example.org"
SAMPLE_ALIAS = "yard@example.net"
SHOWN = GenerateOptions(seed=7, max_tokens=160)


def run_demo(session: Session, mailbox: Path | None, email: str | None) -> Job:
    """Start the stack, import, train and show. Raises whatever stopped it; the stack stays up."""
    if mailbox is not None and email is None:
        raise ConfigError("Whose mailbox is it? Add the address: make demo MBOX=path USER_EMAIL=me@x.org")
    if email is not None and mailbox is None:
        raise ConfigError("Which mailbox is it? Add the path: make demo MBOX=path USER_EMAIL=me@x.org")
    if mailbox is not None and not mailbox.expanduser().exists():
        raise UnreadableMailbox(f"{mailbox} does not exist. Give the path of a mailbox export.")
    path, email = mailbox or SAMPLE_MAILBOX, email or SAMPLE_EMAIL
    settings = session.settings

    _headline("1  Starting PostgreSQL, the Prefect server and two workers")
    with terminal.steps("stack") as on_step:
        stack = local.up(settings, on_step)

    _headline(f"2  Reading {path.name}")
    aliases = (SAMPLE_ALIAS,) if mailbox is None else ()
    with terminal.bytes_bar("importing") as on_bytes:
        user, imported, _ = import_for(session, email, path, aliases=aliases, on_progress=on_bytes)
    terminal.show_import(imported)
    with terminal.count_bar("cleaning") as on_count:
        report = check_user(session, user.id, on_progress=on_count)
    terminal.show_data_report(report)
    if not report.eligible:
        raise NotEnoughMail(
            "There is not enough to train on; nothing was trained.", found=report.usable, needed=report.usable
        )

    _headline("3  Training")
    job = start_job(session, user.id)
    with terminal.job_bar() as on_change:
        job = follow_job(session, job.id, on_change)
    terminal.show_result(job)
    if job.status is not JobStatus.COMPLETED:
        return job

    _headline("4  The same request, two writers")
    _write_both(session, user.id)

    _headline("5  What you have")
    _show_summary(job, user.email, stack.ui_url)
    return job


def _write_both(session: Session, user_id: str) -> None:
    user = users.find_user(session.db, user_id)
    if user.ai_model is None:
        terminal.show_notice("No adapter is active for this user, so there is nothing to compare.")
        return
    with session.serving(session.settings.base_model) as engine:
        for instruction in NEUTRAL_INSTRUCTIONS:
            terminal.console.print(Text(instruction, "bold"))
            with terminal.console.status("writing …"):
                base = engine.generate(None, prompt_messages(instruction), SHOWN).text
                own = engine.generate(user.ai_model, prompt_messages(instruction), SHOWN).text
            terminal.side_by_side("base model", base, user.ai_model, own)


def _show_summary(job: Job, email: str, ui_url: str) -> None:
    metrics = job.metrics
    folder = Path(job.adapter_path or "")
    if folder.is_relative_to(PROJECT_ROOT):
        folder = folder.relative_to(PROJECT_ROOT)
    terminal.show_facts(
        [
            (
                "held-out loss",
                f"{metrics.held_out_nll_base:.2f} → {metrics.held_out_nll_adapter:.2f} nat per token "
                f"({metrics.held_out_emails} mails the training never saw)",
            ),
            ("adapter", f"version {job.version}, {(job.adapter_size or 0) / 1e6:.1f} MB, {folder}"),
            ("serves as", job.model_name or "nothing (the adapter in use was kept)"),
            ("Prefect UI", f"{ui_url.rstrip('/')}/runs/flow-run/{job.flow_run_id}"),
            ("type next", f'.venv/bin/ownvoice write {email} "Write an email about: the invoice is late"'),
            ("", f".venv/bin/ownvoice show {job.id}"),
            ("", "make down        (stops the server and the workers)"),
        ]
    )


def _headline(text: str) -> None:
    terminal.console.print()
    terminal.console.print(Rule(Text(text, "bold"), align="left", style="dim"))
