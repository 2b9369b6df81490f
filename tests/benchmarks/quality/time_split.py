"""One mailbox over time: train on its oldest part, let newer mail arrive, and retrain by each mode.

Which mail a mode learns from is decided in the store, so the mail goes through a PostgreSQL of its own and
through the functions that a job calls.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from store import embedded, users
from store.database import Database, migrate, open_database
from store.mail import MailRow, insert_mail, join_addresses
from tasks import tools
from tasks.training_mail import RetrainPlan, TrainingMail, read_training_mail
from tests.benchmarks.mailboxes import find_mailbox, read_sent
from tests.benchmarks.quality.ledger import Run
from tests.benchmarks.quality.measure import BASE_MODEL, course, encode_all, loaded_base, numbers, train
from training.config import TrainConfig
from training.dataset import OldSet, Prepared, prepare
from training.schemas import Example, Job, Mail, RetrainMode, TrainingResult

if TYPE_CHECKING:
    from peft import PeftModel

FIRST_USABLE = 250
ARRIVING_USABLE = 150
NEXT_USABLE = 60


def train_over_time(run: Run, work: Path) -> dict[str, Any]:
    """Return the losses of base, first adapter and every mode on new and old held-out mail."""
    oldest, arriving, following = split_by_time(run.mailbox, run.config)
    config = run.config.model_copy(
        update={"data": run.config.data.model_copy(update={"max_mails": len(oldest)})}
    )
    base = loaded_base(config, work)
    with _database() as db, TemporaryDirectory(dir=work) as out:
        user = users.create_user(db, "owner@example.org", user_id="owner", consent=True)
        account = users.ensure_account(db, user)
        _arrive(db, account, oldest)
        mail, first = _prepare(config, "first", RetrainPlan(RetrainMode.ROLLING))
        adapters = {"first": train(config, first.train, base, Path(out) / "first")}
        prepared = {"first": first}
        seen, old = mail.last_position, OldSet.of(first.held_out)
        _arrive(db, account, arriving)
        for mode in RetrainMode:
            plan = RetrainPlan(mode, seen, "first" if mode is RetrainMode.INCREMENTAL else None, old)
            mail, prepared[mode] = _prepare(config, mode, plan)
            start = Path(adapters["first"].adapter_dir) if plan.start_adapter else None
            adapters[mode] = train(config, prepared[mode].train, base, Path(out) / mode, start_from=start)
        trained = {e.thread_id for found in prepared.values() for e in found.train}
        sets = {
            "new": unseen_by_all(prepared, trained),
            "next": [e for e in following if e.thread_id not in trained],
            "old": prepared[RetrainMode.ROLLING].old,
        }
        losses = _judge(adapters, sets, config, work)
    newcomers = {mail.id for mail in arriving}
    return {
        "first_sent": len(oldest),
        "arrived": len(arriving),
        "losses": losses,
        "trained": {
            str(arm): {
                "new": sum(e.id in newcomers for e in prepared[arm].train),
                "old": sum(e.id not in newcomers for e in prepared[arm].train),
                "course": course(result),
            }
            for arm, result in adapters.items()
        },
    }


def split_by_time(mailbox: str, config: TrainConfig) -> tuple[list[Mail], list[Mail], list[Example]]:
    """Return the oldest sent mails that hold FIRST_USABLE usable ones, the mails with the next
    ARRIVING_USABLE, and the NEXT_USABLE examples that follow these."""
    undated = datetime.min.replace(tzinfo=UTC)
    mails = sorted(
        read_sent(find_mailbox(mailbox)), key=lambda mail: (mail.sent_at or undated, mail.position)
    )
    prepared = prepare(mails, config.data)
    usable = {example.id: example for example in (*prepared.train, *prepared.held_out)}
    places = [place for place, mail in enumerate(mails) if mail.id in usable]
    second, third = places[FIRST_USABLE], places[FIRST_USABLE + ARRIVING_USABLE]
    following = [usable[mails[place].id] for place in places[FIRST_USABLE + ARRIVING_USABLE :]]
    return mails[:second], mails[second:third], following[:NEXT_USABLE]


def unseen_by_all(prepared: dict[str, Prepared], trained: set[str]) -> tuple[Example, ...]:
    """Return the mails that every retrain held out, without the old set and the threads `trained` on by any.

    The modes hold out by the same rule, but not from the same mail.
    """
    retrains = [found for arm, found in prepared.items() if arm != "first"]
    common = set.intersection(*({e.id for e in found.held_out} for found in retrains))
    kept = {e.id for found in prepared.values() for e in (*found.old, *prepared["first"].held_out)}
    return tuple(
        e for e in retrains[0].held_out if e.id in common and e.id not in kept and e.thread_id not in trained
    )


def _judge(
    adapters: dict[str, TrainingResult], sets: dict[str, Sequence[Example]], config: TrainConfig, work: Path
) -> dict[str, dict[str, list[list[float]]]]:
    from peft import PeftModel

    from training.evaluate import held_out_losses, losses_of_saved_adapter
    from training.loaded_base import restore_base

    base = loaded_base(config, work)
    losses: dict[str, dict[str, list[list[float]]]] = {str(arm): {} for arm in ("base", *adapters)}
    for name, examples in sets.items():
        encoded = encode_all(examples, config, base)
        for arm, result in adapters.items():
            folder = Path(result.adapter_dir)
            found = losses_of_saved_adapter(folder, base, encoded, config.batch_tokens)
            losses[str(arm)][name] = numbers(found)
        model: PeftModel = PeftModel.from_pretrained(base.model, adapters["first"].adapter_dir)
        try:
            plain = held_out_losses(model, base, encoded, config.batch_tokens, adapter=False)
        finally:
            restore_base(model, base)
        losses["base"][name] = numbers(plain)
    return losses


def _prepare(config: TrainConfig, name: str, plan: RetrainPlan) -> tuple[TrainingMail, Prepared]:
    """Read and prepare the mail of one training as the stages extract and prepare do."""
    # The job's id is the seed of what a replay draws, so it must be the same in every measurement.
    job = Job(id=f"quality-{name}", user_id="owner", version=1, base_model=BASE_MODEL)
    mail = read_training_mail(job, config, plan)
    prepared = prepare(mail.mails, config.data, sent=mail.sent, drafted=mail.drafted, retrain=mail.retrain)
    return mail, prepared


def _arrive(db: Database, account: str, mails: Sequence[Mail]) -> None:
    """Store mails as an import does, under ids that are the same every time."""
    insert_mail(
        db,
        account,
        [
            MailRow(
                message_id=mail.id,
                thread_id=mail.thread_id,
                in_reply_to=None,
                is_sent=True,
                sender=mail.sender,
                to=join_addresses(mail.to),
                cc=join_addresses(mail.cc),
                subject=mail.subject,
                body_text=mail.body_text,
                body_html=mail.body_html,
                headers=mail.headers,
                sent_at=mail.sent_at,
            )
            for mail in mails
        ],
    )
    with db.connection() as connection:
        # Random ids would draw another sample in every replay.
        connection.execute('UPDATE "EmailMessage" SET "id" = "messageId"')


@contextmanager
def _database() -> Iterator[Database]:
    """Open an empty PostgreSQL that ends with the block, and make it the one that tasks talk to."""
    home = Path(tempfile.mkdtemp(prefix="ownvoice-quality-"))
    before = os.environ.get("DATABASE_URL")
    try:
        url = embedded.start(home)
        os.environ["DATABASE_URL"] = url
        tools.settings.cache_clear()
        tools.database.cache_clear()
        with open_database(url) as db:
            migrate(db)
            try:
                yield db
            finally:
                tools.database().close()
    finally:
        tools.settings.cache_clear()
        tools.database.cache_clear()
        if before is None:
            os.environ.pop("DATABASE_URL", None)
        else:
            os.environ["DATABASE_URL"] = before
        embedded.stop(home)
        shutil.rmtree(home, ignore_errors=True)
