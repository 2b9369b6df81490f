"""Removing a person's rows, and counting them before."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg import sql

from store.database import Connection, Database
from training.errors import JobAlreadyActive
from training.schemas import EraseItem, EraseResult

ROWS = "rows"
WHERE = "database"
_REFUSALS = (psycopg.errors.ForeignKeyViolation, psycopg.errors.RestrictViolation)
"""What a table of the app's says that refers to a row of ours; PostgreSQL 18 has a code for RESTRICT."""


class RowCounts(NamedTuple):
    """What the database holds of a person."""

    accounts: int
    mails: int
    jobs: int
    adapters: int
    """Jobs that published an adapter."""


# Children before their parents, each with the rows of one person.
_VOICE: dict[LiteralString, LiteralString] = {
    "Outbox": """
        "userId" = %(user)s
        OR "jobId" IN (SELECT "id" FROM "FineTuningJob" WHERE "userId" = %(user)s)
    """,
    "FineTuningEvent": '"jobId" IN (SELECT "id" FROM "FineTuningJob" WHERE "userId" = %(user)s)',
    "FineTuningJob": '"userId" = %(user)s',
}
_ACCOUNTS: LiteralString = '"emailAccountId" IN (SELECT "id" FROM "EmailAccount" WHERE "userId" = %(user)s)'
_MAIL: dict[LiteralString, LiteralString] = {
    "EmailMessage": _ACCOUNTS,
    "MailCount": _ACCOUNTS,
    "EmailAccount": '"userId" = %(user)s',
    "User": '"id" = %(user)s',
}


def count_rows(db: Database, user_id: str) -> RowCounts:
    """Return how much the database holds of a person; zeros for an unknown one."""
    with db.connection() as connection:
        row = connection.execute(
            """
            SELECT (SELECT count(*) FROM "EmailAccount" WHERE "userId" = %(user)s),
                   (SELECT count(*) FROM "EmailMessage" m JOIN "EmailAccount" a
                    ON a."id" = m."emailAccountId" WHERE a."userId" = %(user)s),
                   (SELECT count(*) FROM "FineTuningJob" WHERE "userId" = %(user)s),
                   (SELECT count(*) FROM "FineTuningJob"
                    WHERE "userId" = %(user)s AND "modelName" IS NOT NULL)
            """,
            {"user": user_id},
        ).fetchone()
    assert row is not None
    return RowCounts(*row)


def erase_rows(db: Database, user_id: str, job_ids: Collection[str], *, keep_mail: bool) -> list[EraseItem]:
    """Remove a person's jobs, events, webhooks and voice, and unless `keep_mail` the mail and the person.

    One transaction. `job_ids` are the jobs whose folders and adapters are gone already: raises
    JobAlreadyActive, removing nothing, when there is another one by now. A table of the app's that refers to
    a row keeps that row; the receipt says so.
    """
    with db.transaction() as connection:
        # The lock of create_job: no job appears between the look and the deletion.
        user = connection.execute('SELECT 1 FROM "User" WHERE "id" = %s FOR UPDATE', (user_id,)).fetchone()
        newer = connection.execute(
            'SELECT "id" FROM "FineTuningJob" WHERE "userId" = %s AND NOT "id" = ANY (%s) LIMIT 1',
            (user_id, list(job_ids)),
        ).fetchone()
        if newer is not None:
            raise JobAlreadyActive(
                f"Job {newer[0]} of user {user_id} was made during the erasure; no row was removed. "
                f"Run `ownvoice erase {user_id}` again.",
                job_id=newer[0],
            )
        items = [_delete(connection, table, where, user_id) for table, where in _VOICE.items()]
        if keep_mail:
            kept = _item("mail, accounts and user", EraseResult.KEPT, "asked to keep them")
            items.append(kept if user else _item(kept.name, EraseResult.ABSENT, "0 left"))
        else:
            items += [_delete(connection, table, where, user_id) for table, where in _MAIL.items()]
        if _clear_voice(connection, user_id):
            gone = "the User row stays; its voice columns are empty"
            items.append(_item("voice columns", EraseResult.REMOVED, gone))
    return items


def _delete(connection: Connection, table: LiteralString, where: LiteralString, user_id: str) -> EraseItem:
    named = sql.Identifier(table)
    values: dict[str, Any] = {"user": user_id}
    delete = sql.SQL("DELETE FROM {} WHERE {}").format(named, sql.SQL(where))
    count = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(named, sql.SQL(where))
    try:
        with connection.transaction():
            # A deferred constraint would refuse at the commit and take everything back.
            connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            deleted = connection.execute(delete, values).rowcount
    except _REFUSALS as exc:
        by = f' of "{exc.diag.table_name}"' if exc.diag.table_name not in (None, table) else ""
        return _item(f'"{table}"', EraseResult.KEPT, f"rows{by} of the app refer to them")
    left = connection.execute(count, values).fetchone()
    assert left is not None and left[0] == 0
    result = EraseResult.REMOVED if deleted else EraseResult.ABSENT
    return _item(f'"{table}"', result, f"{deleted} deleted, 0 left")


def _clear_voice(connection: Connection, user_id: str) -> bool:
    """Empty the voice columns of a row that stays; False when there is none."""
    cleared = connection.execute(
        """
        UPDATE "User" SET
            -- Without an adapter of ours they are the app's own choice of a model.
            "aiProvider" = CASE WHEN "loraAdapterId" IS NULL THEN "aiProvider" END,
            "aiModel" = CASE WHEN "loraAdapterId" IS NULL THEN "aiModel" END,
            "loraAdapterId" = NULL, "loraAdapterPath" = NULL, "adapterLastTrained" = NULL,
            "adapterNextTraining" = NULL, "adapterTrainingCount" = 0, "voiceConsentAt" = NULL,
            "sentCountNotified" = 0, "sentCountTrained" = 0, "updatedAt" = now()
        WHERE "id" = %s
        """,
        (user_id,),
    )
    return cleared.rowcount > 0


def _item(name: str, result: EraseResult, verified: str) -> EraseItem:
    return EraseItem(kind=ROWS, name=name, where=WHERE, result=result, verified=verified)
