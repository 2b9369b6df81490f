"""`ownvoice rollback`: go back to an earlier version of a user's adapter."""

from __future__ import annotations

from app.flow_runs import run_flow
from app.session import Session
from store import users
from training.schemas import RollbackResult


def roll_back(session: Session, id_or_email: str, version: int | None) -> RollbackResult:
    """Prove and activate `version`, or the newest promoted one older than the active one.

    Raises UnknownUser, NoConsent, InvalidTransition when there is nothing to go back to, and what the engine
    says against it.
    """
    user = users.find_user(session.db, id_or_email)
    found = run_flow(session, "flows.publish_adapter:rollback_adapter", user.id, version=version)
    return RollbackResult.model_validate(found)
