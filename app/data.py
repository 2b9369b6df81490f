"""A user's mail without a job: what `ownvoice import` and `ownvoice check` do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from app.session import Session
from store import mail, users
from store.importers.load import import_mailbox
from store.rates import measured_runs
from training.adapter_size import adapter_bytes
from training.base_models import BaseModel, find_base_model
from training.choose import choose
from training.config import TrainConfig, load_train_config
from training.dataset import Prepared, prepare
from training.errors import ConfigError, UnknownUser, UnreadableMailbox
from training.estimate import estimate_training, rates_of
from training.playback import expected_sentence
from training.schemas import DataReport, ImportReport, User


def import_for(
    session: Session,
    email: str,
    path: Path,
    *,
    format: str = "auto",
    aliases: Sequence[str] = (),
    consent: bool | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[User, ImportReport, bool]:
    """Read a mailbox into the account of `email`; returns the user, the report and whether the user is new.

    A new user agrees to voice training unless `consent` is False; a known user's answer changes only when
    `consent` is given. An import that stores nothing because it fails leaves no new user behind.

    Raises UnreadableMailbox, ConfigError, StoreError.
    """
    is_new = False
    try:
        user = users.find_user(session.db, email)
    except UnknownUser:
        is_new = True
        user = users.create_user(session.db, email, consent=consent is not False)
    if not is_new and consent is not None:
        change = users.record_consent if consent else users.withdraw_consent
        user = change(session.db, user.id)
    try:
        report = import_mailbox(
            session.db, user, path, format=format, aliases=aliases, on_progress=on_progress
        )
    except (UnreadableMailbox, ConfigError):
        if is_new:
            users.remove_empty_user(session.db, user.id)
        raise
    return user, report, is_new


def check_user(
    session: Session,
    id_or_email: str,
    *,
    config: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataReport:
    """Clean the user's newest sent mail and report what training would use; trains and stores nothing.

    Raises UnknownUser, ConfigError.
    """
    settings = session.settings
    user = users.find_user(session.db, id_or_email)
    preset = load_train_config(config or settings.train_config)
    base = find_base_model(preset.base_model or settings.base_model)
    mails = mail.fetch_sent_mail(session.db, user.id, preset.data.max_mails)
    prepared = prepare(mails, preset.data, sent=mail.count_sent(session.db, user.id), on_progress=on_progress)
    chosen = choose(preset, prepared.train)
    rates = rates_of(base, chosen.config, *measured_runs(session.db, base.id))
    estimate = estimate_training(prepared.train, chosen.config, rates, settings.hourly_price)
    sized = estimate.model_copy(update={"adapter_bytes": adapter_bytes(base, chosen.config)})
    return prepared.report.model_copy(
        update={
            "estimate": sized,
            "chosen": chosen.reason,
            "instructions": _what_playback_takes(session, preset, prepared, base),
        }
    )


def _what_playback_takes(session: Session, config: TrainConfig, prepared: Prepared, base: BaseModel) -> str:
    """Say what a training would ask the base model for; "" when its instructions are subject lines."""
    if config.data.instructions == "subject" or not prepared.report.eligible:
        return ""
    embedded = session.settings.engine == "llamacpp"
    return expected_sentence(prepared, base.cpu_tokens_per_second if embedded else None)
