"""`ownvoice evaluate --matrix`: every adapter on everybody's mail, measured in this command's own process.

Loads PyTorch and the base model here (about 2 bytes a parameter), because a person waits for the answer and
nothing of it is kept. Mail is read and cleaned in memory; what comes out are means.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.session import Session
from store import jobs, users
from store import mail as stored_mail
from training.base_models import find_base_model
from training.config import DataConfig, TrainConfig, load_train_config
from training.dataset import OldSet
from training.errors import ConfigError, NoConsent, NotEnoughMail, OwnvoiceError, StorageError
from training.matrix import (
    MIN_UNSEEN,
    CrossMatrix,
    MatrixColumn,
    MatrixRow,
    Unseen,
    choose_unseen,
    describe_column,
    matrix_markdown,
)
from training.schemas import Job, RetrainMode, User

if TYPE_CHECKING:
    from training.loaded_base import LoadedBase

MOST_USERS = 20
"""Measurements grow with the square: 20 people are 420."""
ADAPTER, OLD_SET = "adapter", "old_set.json"
"""In a job folder; the words of tasks/job_folder.py, which commands may not import."""


@dataclass(frozen=True)
class Person:
    """One user of the matrix: their adapter in use and the mail it is measured on."""

    user: User
    job: Job
    unseen: Unseen


def cross_matrix(
    session: Session,
    who: Sequence[str],
    *,
    on_progress: Callable[[int, int], None] | None = None,
    on_step: Callable[[str], None] | None = None,
) -> CrossMatrix:
    """Measure the base and the active adapter of every user on every user's unseen mail.

    `on_progress(done, in all)` counts mails under one model; `on_step` says what begins.

    Raises ConfigError, UnknownUser, NoConsent, NotEnoughMail (fewer than 10 unseen mails), StorageError,
    AdapterRefused, NotEnoughMemory.
    """
    say = on_step or (lambda _: None)
    chosen = _find_users(session, who)
    config = load_train_config(session.settings.train_config)
    say(f"Reading and cleaning the mail of {len(chosen)} people …")
    people = [Person(user, job, _unseen_of(session, user, job, config.data)) for user, job in chosen]
    base_model = people[0].job.base_model
    say(f"Loading PyTorch and the base model {base_model} into this process …")
    from training.loaded_base import load_base

    base = load_base(find_base_model(base_model), session.settings.cache, config)
    columns = tuple(
        MatrixColumn(
            user_id=p.user.id,
            email=p.user.email,
            usable=p.unseen.usable,
            old=p.unseen.old,
            new=p.unseen.new,
        )
        for p in people
    )
    say(f"Measuring {len(people)} adapters and the base on {len(people)} mailboxes …")
    with _adapters(session, people) as folders:
        rows = measure_rows(people, folders, base, config, on_progress)
    return CrossMatrix(base_model=base_model, columns=columns, rows=tuple(rows))


def measure_rows(
    people: Sequence[Person],
    folders: Sequence[Path],
    base: LoadedBase,
    config: TrainConfig,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[MatrixRow]:
    """Return the base's row and one for each adapter; `folders` hold PEFT files, in the order of `people`."""
    from training.dataset import encode
    from training.evaluate import held_out_losses, saved_adapter
    from training.skill import mean_loss

    mailboxes = [
        [encode(e, base.tokenizer, config.max_seq_tokens) for e in person.unseen.examples]
        for person in people
    ]
    done, total = 0, (len(people) + 1) * sum(map(len, mailboxes))

    def losses_under(folder: Path, *, adapter: bool) -> tuple[float | None, ...]:
        nonlocal done
        losses: list[float | None] = []
        with saved_adapter(folder, base) as model:
            for examples in mailboxes:
                loss = mean_loss(held_out_losses(model, base, examples, config.batch_tokens, adapter=adapter))
                losses.append(loss if math.isfinite(loss) else None)
                done += len(examples)
                if on_progress is not None:
                    on_progress(done, total)
        return tuple(losses)

    rows = [MatrixRow(title="base", losses=losses_under(folders[0], adapter=False))]
    for person, folder in zip(people, folders, strict=True):
        user, version = person.user, person.job.version
        losses = losses_under(folder, adapter=True)
        rows.append(
            MatrixRow(user_id=user.id, title=f"{user.email} v{version}", version=version, losses=losses)
        )
    return rows


def require_place(out: Path) -> None:
    """Raise ConfigError when the Markdown file cannot be written; asked before minutes of measuring."""
    try:
        if out.exists():
            # Opened and left as it is; a pipe that nobody reads must not wait for a reader.
            os.close(os.open(out, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK))
        else:
            with NamedTemporaryFile(dir=out.absolute().parent):
                pass
    except OSError as exc:
        raise ConfigError(
            f"{out} cannot be written ({exc.strerror}). Give --out the name of a file in a folder that "
            "exists and that you may write to."
        ) from exc


def write_markdown(matrix: CrossMatrix, out: Path) -> None:
    """Write the matrix as a Markdown page. Raises ConfigError when the disk refuses."""
    try:
        out.write_text(matrix_markdown(matrix), encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{out} cannot be written ({exc.strerror}). Choose another place.") from exc


def _find_users(session: Session, who: Sequence[str]) -> list[tuple[User, Job]]:
    if not 2 <= len(who) <= MOST_USERS:
        raise ConfigError(
            f"A matrix takes 2 to {MOST_USERS} users ({len(who)} given): ownvoice evaluate --matrix USER USER"
        )
    found: list[tuple[User, Job]] = []
    for wanted in who:
        user = users.find_user(session.db, wanted)
        if any(user.id == other.id for other, _ in found):
            raise ConfigError(f"{wanted} is named twice. Name every user once.")
        if user.voice_consent_at is None:
            raise NoConsent(
                f"{user.email} has not agreed to voice training, so their mail is not measured on. "
                "Leave them out."
            )
        job = jobs.current_adapter(session.db, user.id)
        if job is None:
            raise OwnvoiceError(
                f"{user.email} has no adapter yet. Train one with `ownvoice train {user.email} --follow`."
            )
        found.append((user, job))
    bases = sorted({job.base_model for _, job in found})
    if len(bases) > 1:
        raise ConfigError(
            f"These adapters have different base models ({', '.join(bases)}), so their losses do not "
            "compare. Name users of one base."
        )
    return found


def _unseen_of(session: Session, user: User, job: Job, data: DataConfig) -> Unseen:
    """Read a person's mail and choose what their adapter never saw. Raises NotEnoughMail."""
    db, old = session.db, _old_set(session, job)
    mails = stored_mail.fetch_sent_mail(db, user.id, data.max_mails)
    mails += stored_mail.fetch_mail_by_hash(db, user.id, old.mails, data.max_mails)
    arrived: set[str] = set()
    if job.last_position is not None:
        chosen = stored_mail.select_mail(
            db,
            user.id,
            data.max_mails,
            up_to=stored_mail.fetch_sent_state(db, user.id).last_position or 0,
            seen=job.last_position,
            mode=RetrainMode.INCREMENTAL,
            apart=old.threads,
        )
        mails += chosen.mails
        arrived = set(chosen.unseen)
    unseen = choose_unseen(list({mail.id: mail for mail in mails}.values()), arrived, old, data)
    if len(unseen.examples) < MIN_UNSEEN:
        raise NotEnoughMail(
            f"Version {job.version} of {user.email} has seen nearly all of their mail: "
            f"{len(unseen.examples)} usable mails are left ({unseen.old} of the frozen held-out set, "
            f"{unseen.new} that arrived since), {MIN_UNSEEN} are needed. Import newer mail, or leave this "
            "user out.",
            found=len(unseen.examples),
            needed=MIN_UNSEEN,
        )
    return unseen


# ---- storage: the job folders, read only -----------------------------------------------------------


def _old_set(session: Session, job: Job) -> OldSet:
    """Return the frozen held-out set that the job carried; empty when its folder no longer has it."""
    with _storage(session, job, OLD_SET) as (fs, folder):
        if not fs.exists(f"{folder}/{OLD_SET}"):
            return OldSet()
        text = fs.cat_file(f"{folder}/{OLD_SET}").decode("utf-8")
    try:
        return OldSet.model_validate(json.loads(text))
    except (ValueError, ValidationError):
        raise StorageError(
            f"{OLD_SET} of job {job.id} cannot be read. Train again, or leave it out."
        ) from None


@contextmanager
def _adapters(session: Session, people: Sequence[Person]) -> Iterator[list[Path]]:
    """Yield a local folder of PEFT files for each person; what is not on this disk is copied for the time."""
    scratch = Path(tempfile.mkdtemp(prefix="ownvoice-matrix-"))
    try:
        yield [_adapter_folder(session, person, scratch) for person in people]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _adapter_folder(session: Session, person: Person, scratch: Path) -> Path:
    job = person.job
    with _storage(session, job, ADAPTER) as (fs, folder):
        if not fs.exists(f"{folder}/{ADAPTER}/adapter_model.safetensors"):
            raise StorageError(
                f"The files of version {job.version} of {person.user.email} are no longer in storage (job "
                f"{job.id}). Train again with `ownvoice train {person.user.email}`, or leave this user out."
            )
        if isinstance(fs, LocalFileSystem):
            return Path(folder) / ADAPTER
        fs.get(f"{folder}/{ADAPTER}/", f"{scratch / job.id}/", recursive=True)
        return scratch / job.id


@contextmanager
def _storage(session: Session, job: Job, name: str) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
    """Yield the file system and the job's folder in it. Raises StorageError."""
    try:
        fs, root = fsspec.core.url_to_fs(session.settings.storage, use_listings_cache=False)
        yield fs, str(PurePosixPath(root) / "jobs" / job.id)
    except (OSError, ImportError, ValueError) as exc:
        raise StorageError(
            f"Storage failed at {name} of job {job.id} ({type(exc).__name__}). "
            "Check OWNVOICE_STORAGE_URL and run again."
        ) from exc


def show_matrix(matrix: CrossMatrix, console: Console) -> None:
    """Print the matrix, the lowest loss of each column bold, then which mails it rests on and the verdict."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"Mean loss on held-out mail, nat per reply token ({matrix.base_model})",
        title_justify="left",
        pad_edge=False,
    )
    table.add_column("adapter")
    for column in matrix.columns:
        table.add_column(Text(column.email), justify="right")
    for row in matrix.rows:
        table.add_row(Text(row.title), *(_cell(matrix, row, n) for n in range(len(matrix.columns))))
    console.print(table)
    for column in matrix.columns:
        console.print(Text(describe_column(column)), style="dim", soft_wrap=True)
    style = {True: "green", False: "red", None: "yellow"}[matrix.verdict]
    console.print(Text(f"\n{matrix.sentence}"), style=style, soft_wrap=True)


def _cell(matrix: CrossMatrix, row: MatrixRow, column: int) -> Text:
    loss = row.losses[column]
    if loss is None:
        return Text("–")
    return Text(f"{loss:.3f}", style="bold green" if loss == matrix.lowest(column) else "")
