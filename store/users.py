"""People, their mail addresses and their consent: one function a query."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from psycopg import sql
from psycopg.rows import class_row

from store.database import Connection, Database
from training.errors import ConfigError, UnknownUser
from training.schemas import User

# `::timestamptz` because the app's Prisma columns are `timestamp` (UTC); ours are `timestamptz` already.
_COLUMNS = sql.SQL(
    """
    u."id", coalesce(u."email", '') AS email, u."aiProvider" AS ai_provider, u."aiModel" AS ai_model,
    u."loraAdapterId" AS lora_adapter_id, u."loraAdapterPath" AS lora_adapter_path,
    u."adapterLastTrained"::timestamptz AS adapter_last_trained,
    u."adapterNextTraining"::timestamptz AS adapter_next_training,
    u."adapterAutoRetrain" AS adapter_auto_retrain,
    u."adapterTrainingInterval" AS adapter_training_interval,
    u."adapterTrainingCount" AS adapter_training_count,
    u."voiceConsentAt"::timestamptz AS voice_consent_at, u."sentCountNotified" AS sent_count_notified,
    u."sentCountTrained" AS sent_count_trained
    """
)


def create_user(
    db: Database,
    email: str,
    *,
    user_id: str | None = None,
    aliases: Iterable[str] = (),
    consent: bool = False,
) -> User:
    """Add a person with one mail account. Raises ConfigError for a bad or already known address."""
    email = email.strip()
    if not is_address(email):
        raise ConfigError(f'"{email}" is no mail address. Give one like anna@example.org.')
    with db.transaction() as connection:
        # Two imports for the same new person at once: the second one waits and then sees the first.
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(lower(%s), 0))", (email,))
        known = connection.execute(
            'SELECT "id" FROM "User" WHERE lower("email") = lower(%s) OR "id" = %s', (email, user_id)
        ).fetchone()
        if known is not None:
            raise ConfigError(f"{email} is known already (user {known[0]}). Use that user.")
        cursor = connection.cursor(row_factory=class_row(User))
        user = cursor.execute(
            sql.SQL(
                """
                INSERT INTO "User" AS u ("id", "email", "voiceConsentAt", "createdAt", "updatedAt")
                VALUES (%s, %s, CASE WHEN %s THEN now() END, now(), now())
                RETURNING {}
                """
            ).format(_COLUMNS),
            (user_id or new_id("u"), email, consent),
        ).fetchone()
        assert user is not None
        account = _create_account(connection, user.id, email)
        _extend_aliases(connection, account, (email,), aliases)
    return user


def find_user(db: Database, id_or_email: str) -> User:
    """Return the person with that id or address (any case; accounts' addresses count). Raises UnknownUser."""
    wanted = id_or_email.strip()
    with db.connection() as connection:
        user = (
            connection.cursor(row_factory=class_row(User))
            .execute(
                sql.SQL(
                    """
                    SELECT {} FROM "User" u
                    WHERE u."id" = %(wanted)s OR lower(u."email") = lower(%(wanted)s)
                       OR u."id" IN (SELECT a."userId" FROM "EmailAccount" a
                                     WHERE lower(a."email") = lower(%(wanted)s))
                    ORDER BY u."id" = %(wanted)s DESC, u."email" = %(wanted)s DESC,
                             lower(u."email") = lower(%(wanted)s) DESC, u."createdAt"
                    LIMIT 1
                    """
                ).format(_COLUMNS),
                {"wanted": wanted},
            )
            .fetchone()
        )
    if user is None:
        hint = (
            f"`ownvoice import PATH --user {wanted}` adds them with their mail."
            if is_address(wanted)
            else "Give the id or the mail address."
        )
        raise UnknownUser(f'There is no user "{wanted}". Check the spelling. {hint}')
    return user


def list_users(db: Database) -> list[User]:
    """Return everybody, oldest first."""
    with db.connection() as connection:
        cursor = connection.cursor(row_factory=class_row(User))
        return cursor.execute(
            sql.SQL('SELECT {} FROM "User" u ORDER BY u."createdAt", u."id"').format(_COLUMNS)
        ).fetchall()


def remove_empty_user(db: Database, user_id: str) -> bool:
    """Remove a person who has neither mail nor jobs (an import that failed made them); True when removed."""
    with db.transaction() as connection:
        empty = connection.execute(
            """
            SELECT 1 FROM "User" u WHERE u."id" = %(user)s
              AND NOT EXISTS (SELECT 1 FROM "EmailMessage" m JOIN "EmailAccount" a
                              ON a."id" = m."emailAccountId" WHERE a."userId" = u."id")
              AND NOT EXISTS (SELECT 1 FROM "FineTuningJob" j WHERE j."userId" = u."id")
            FOR UPDATE OF u
            """,
            {"user": user_id},
        ).fetchone()
        if empty is None:
            return False
        # The app's own tables need not cascade.
        connection.execute('DELETE FROM "EmailAccount" WHERE "userId" = %s', (user_id,))
        connection.execute('DELETE FROM "User" WHERE "id" = %s', (user_id,))
    return True


def record_consent(db: Database, user_id: str) -> User:
    """Note that the person agreed now; an earlier agreement keeps its moment. Raises UnknownUser."""
    return _update(db, user_id, sql.SQL('"voiceConsentAt" = coalesce(u."voiceConsentAt", now())'))


def withdraw_consent(db: Database, user_id: str) -> User:
    """Forget that the person agreed: no job of theirs starts or publishes after this. Raises UnknownUser."""
    return _update(db, user_id, sql.SQL('"voiceConsentAt" = NULL'))


def addresses(db: Database, user_id: str) -> frozenset[str]:
    """Return all addresses and aliases that the person writes from, lower-cased."""
    with db.connection() as connection:
        return _addresses(connection, user_id)


def add_aliases(db: Database, user_id: str, aliases: Iterable[str]) -> tuple[str, ...]:
    """Add addresses that the person writes from and return the new ones. Raises UnknownUser.

    In archives without addresses an alias is the name that stands there.
    """
    user = find_user(db, user_id)
    with db.transaction() as connection:
        account = _ensure_account(connection, user)
        # Locks the row: of two imports that find the same alias, one reports it as new.
        connection.execute('SELECT 1 FROM "EmailAccount" WHERE "id" = %s FOR UPDATE', (account,))
        return _extend_aliases(connection, account, _addresses(connection, user.id), aliases)


def ensure_account(db: Database, user: User) -> str:
    """Return the id of the person's mail account, making one when the app has none."""
    with db.transaction() as connection:
        return _ensure_account(connection, user)


def is_address(text: str) -> bool:
    """Tell whether `text` looks like one bare mail address."""
    local, at, domain = text.rpartition("@")
    return bool(local and at and "." in domain.strip(".")) and not set(text) & set(" \t\r\n<>,;\"'()")


def new_id(prefix: str) -> str:
    """Return a new lower-case id: `prefix` and 20 characters (100 random bits).

    Lower case because serving engines fold names, and a folded id would need a digest suffix.
    """
    alphabet = "abcdefghijkmnpqrstuvwxyz23456789"  # 32 characters; no l, o, 0, 1: ids are read aloud
    return prefix + "".join(secrets.choice(alphabet) for _ in range(20))


def _update(db: Database, user_id: str, change: sql.SQL) -> User:
    with db.connection() as connection:
        user = (
            connection.cursor(row_factory=class_row(User))
            .execute(
                sql.SQL('UPDATE "User" u SET {}, "updatedAt" = now() WHERE u."id" = %s RETURNING {}').format(
                    change, _COLUMNS
                ),
                (user_id,),
            )
            .fetchone()
        )
    if user is None:
        raise UnknownUser(f'There is no user with the id "{user_id}".')
    return user


def _addresses(connection: Connection, user_id: str) -> frozenset[str]:
    rows = connection.execute(
        """
        SELECT lower("email") FROM "User" WHERE "id" = %(user)s AND "email" <> ''
        UNION
        SELECT lower("email") FROM "EmailAccount" WHERE "userId" = %(user)s AND "email" <> ''
        UNION
        SELECT lower(alias) FROM "EmailAccount", unnest("aliases") AS alias WHERE "userId" = %(user)s
        """,
        {"user": user_id},
    ).fetchall()
    return frozenset(address for (address,) in rows)


def _ensure_account(connection: Connection, user: User) -> str:
    connection.execute('SELECT 1 FROM "User" WHERE "id" = %s FOR NO KEY UPDATE', (user.id,))
    row = connection.execute(
        """
        SELECT "id" FROM "EmailAccount" WHERE "userId" = %s
        ORDER BY lower("email") = lower(%s) DESC, "createdAt", "id" LIMIT 1
        """,
        (user.id, user.email),
    ).fetchone()
    return str(row[0]) if row is not None else _create_account(connection, user.id, user.email)


def _create_account(connection: Connection, user_id: str, email: str) -> str:
    account = new_id("a")
    connection.execute(
        """
        INSERT INTO "EmailAccount" ("id", "userId", "email", "createdAt", "updatedAt")
        VALUES (%s, %s, %s, now(), now())
        """,
        (account, user_id, email),
    )
    return account


def _extend_aliases(
    connection: Connection, account: str, known: Iterable[str], aliases: Iterable[str]
) -> tuple[str, ...]:
    seen = {address.lower() for address in known}
    added: list[str] = []
    for alias in (" ".join(alias.split()) for alias in aliases):
        if alias and alias.lower() not in seen:
            seen.add(alias.lower())
            added.append(alias)
    if added:
        connection.execute(
            """
            UPDATE "EmailAccount" SET "aliases" = "aliases" || %s::text[], "updatedAt" = now() WHERE "id" = %s
            """,
            (added, account),
        )
    return tuple(added)
