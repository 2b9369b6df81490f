"""The data report of one user, made without a job: what `ownvoice check` shows."""

from __future__ import annotations

from collections.abc import Callable

from app.session import Session
from store import jobs, mail, users
from training.base_models import find_base_model
from training.config import load_train_config
from training.dataset import prepare
from training.estimate import estimate_training
from training.schemas import DataReport


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
    chosen = load_train_config(config or settings.train_config)
    base = find_base_model(chosen.base_model or settings.base_model)
    mails = mail.fetch_sent_mail(session.db, user.id, chosen.data.max_mails)
    prepared = prepare(mails, chosen.data, sent=mail.count_sent(session.db, user.id), on_progress=on_progress)
    rate = jobs.measured_rate(session.db, base.id) or base.cpu_tokens_per_second
    estimate = estimate_training(prepared.train, chosen, rate, settings.hourly_price)
    return prepared.report.model_copy(update={"estimate": estimate})
