"""`ownvoice erase`: what will go, the question, the run, the receipt."""

from __future__ import annotations

import sys

from rich import box
from rich.table import Table
from rich.text import Text

from app import terminal
from app.flow_runs import run_flow
from app.session import Session
from store import users
from store.erase import RowCounts, count_rows
from store.users import is_address
from training.errors import ConfigError, UnknownUser
from training.schemas import EraseReceipt, EraseResult

_COLOUR = {EraseResult.REMOVED: "green", EraseResult.ABSENT: "dim", EraseResult.KEPT: "yellow"}


def find_erasable(session: Session, id_or_email: str) -> str:
    """Return the id to erase. One without a row is taken as it is: its leftovers may go a second time.

    Raises UnknownUser for an address that nobody has.
    """
    try:
        return users.find_user(session.db, id_or_email).id
    except UnknownUser:
        if is_address(id_or_email.strip()):
            raise
        return id_or_email.strip()


def may_erase(session: Session, user_id: str, *, keep_mail: bool, yes: bool) -> bool:
    """Show what will go and ask. Raises ConfigError without a terminal to ask on, unless `yes`."""
    if yes:
        return True
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigError(
            "Erasing cannot be undone, and there is no terminal to ask on. Add --yes to erase without a "
            "question."
        )
    terminal.errors.print(_question(user_id, count_rows(session.db, user_id), keep_mail), highlight=False)
    terminal.errors.print("This cannot be undone. Erase? [y/N] ", end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def erase(session: Session, user_id: str, *, keep_mail: bool) -> EraseReceipt:
    """Run the flow here. Raises what stopped it; run again, it goes on with what is left."""
    found = run_flow(session, "flows.erase_user:erase_user", user_id, keep_mail=keep_mail)
    return EraseReceipt.model_validate(found)


def show_receipt(receipt: EraseReceipt) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("what", "name", "where", "result", "how it was seen"):
        table.add_column(name, overflow="fold")
    for item in receipt.items:
        result = Text(item.result, _COLOUR[item.result])
        table.add_row(item.kind, item.name, item.where, result, item.verified)
    terminal.console.print(table)
    if receipt.complete:
        terminal.show_notice(f"User {receipt.user_id} is erased.")
    else:
        terminal.show_error("Not everything is gone: see what was kept, then run the command again.")


def _question(user_id: str, counts: RowCounts, keep_mail: bool) -> str:
    voice = f"{counts.jobs} jobs with their folders, {counts.adapters} published adapters"
    mail = "the mail stays" if keep_mail else f"{counts.mails} mails in {counts.accounts} accounts"
    return f"User {user_id}: {voice}; {mail}."
