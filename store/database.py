"""The way to PostgreSQL: one pool, one place where psycopg's errors become ours, and the migrations.

Sync psycopg 3. `connection()` is for single statements (autocommit, so a reader never sits "idle in
transaction"); `transaction()` is for several that belong together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from training.errors import ConfigError, StoreError, StoreUnavailable

Connection = psycopg.Connection[TupleRow]

MIGRATIONS = Path(__file__).parent / "migrations"
CONNECT_TIMEOUT_S = 10
POOL_TIMEOUT_S = 30
"""How long a caller waits for a free connection before it is told so, unless it says otherwise."""
MIGRATION_LOCK = 0x6F776E76
"""Key of the advisory lock that makes two migrators take turns ("ownv" in ASCII)."""


class Database:
    """A pool of connections to one database. Made by `open_database`; close it or use it in `with`."""

    def __init__(self, pool: ConnectionPool[Connection], address: str, sent_column: str) -> None:
        self.address = address
        """User, host, port and name; never the password."""
        self.sent = sql.Identifier(sent_column)
        """The column of "EmailMessage" that flags sent mail, ready for `sql.SQL(...).format`."""
        self.sent_column = sent_column
        self._pool = pool

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connection on which every statement is its own transaction. Raises StoreError."""
        with self._as_store_error(), self._pool.connection() as connection:
            yield connection

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Lend a connection inside one transaction: committed at the end, undone by any exception."""
        with self.connection() as connection, connection.transaction():
            yield connection

    def close(self) -> None:
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _as_store_error(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as exc:
            raise store_error(exc, self.address) from exc


def open_database(
    url: str, *, sent_column: str = "isSent", max_connections: int = 10, wait_s: float = POOL_TIMEOUT_S
) -> Database:
    """Connect to `url` and return the opened database.

    `wait_s`: seconds for which a later call waits for a free connection, or for a server that went away.
    `sent_column` names the column of "EmailMessage" that flags sent mail. Raises StoreError when the server
    cannot be reached, with its address (never the password) and what to do.
    """
    address = address_of(url)
    try:
        # A plain connection first: the pool retries in the background and only reports a timeout, this
        # reports the reason at once.
        psycopg.connect(url, connect_timeout=CONNECT_TIMEOUT_S).close()
    except psycopg.Error as exc:
        raise store_error(exc, address) from exc
    pool: ConnectionPool[Connection] = ConnectionPool(
        url,
        kwargs={"autocommit": True, "connect_timeout": CONNECT_TIMEOUT_S},
        min_size=1,
        max_size=max_connections,
        timeout=max(1.0, wait_s),
        open=False,  # opened below: a pool that opens itself cannot report that it failed
        configure=_use_utc,
        check=ConnectionPool.check_connection,  # a restarted server costs one reconnect, not one failed job
        name="ownvoice",
    )
    pool.open()
    return Database(pool, address, sent_column)


def address_of(url: str) -> str:
    """Return `user@host:port/name` of a connection string, without its password.

    Raises ConfigError for a string that is no PostgreSQL address; the string itself is not repeated, it may
    hold a password.
    """
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error:
        raise ConfigError(
            "DATABASE_URL is no PostgreSQL address. It looks like "
            "postgresql://user:password@host:5432/name; correct it, or unset it to use the embedded server."
        ) from None
    user = f"{parts['user']}@" if parts.get("user") else ""
    host = parts.get("host") or "localhost"
    port = f":{parts['port']}" if parts.get("port") else ""
    return f"{user}{host}{port}/{parts.get('dbname') or ''}"


def store_error(exc: psycopg.Error, address: str) -> StoreError:
    """Turn a psycopg error into a sentence, and take row values out of the error that is kept as cause.

    PostgreSQL quotes the offending row in DETAIL and CONTEXT, and the value itself in the primary message of
    data and constraint errors (SQLSTATE classes 22 and 23): that may be mail, and tracebacks are logged.
    """
    state = exc.sqlstate or ""
    kind = type(exc).__name__
    primary = exc.diag.message_primary or ""
    if state[:2] in ("22", "23"):
        where = exc.diag.constraint_name or exc.diag.column_name or exc.diag.table_name or "a value"
        exc.args = (f"{kind} [{state}] {where}",)
        return StoreError(f"PostgreSQL at {address} refused the data: {kind} ({where}).")
    # psycopg gives no SQLSTATE for a connection that was never made, only libpq's text (which names host,
    # user and database, never the password).
    said = primary or str(exc)
    if state in ("28P01", "28000") or "authentication failed" in said:
        return StoreError(
            f"PostgreSQL at {address} refused the user or the password. Correct them in DATABASE_URL."
        )
    if state == "3D000" or ('database "' in said and "does not exist" in said):
        return StoreError(f"PostgreSQL at {address} has no such database. Create it or correct DATABASE_URL.")
    if state in ("42P01", "42703"):
        exc.args = (primary,)
        return StoreError(
            f"The database at {address} lacks a table or column ({primary}). Run `ownvoice db upgrade`."
        )
    if isinstance(exc, psycopg.OperationalError) and (not state or state[:2] in ("08", "53", "57")):
        reason = re.sub(r"\s+", " ", said.strip().splitlines()[0].rpartition("failed: ")[2]) if said else kind
        return StoreUnavailable(
            f"PostgreSQL at {address} does not answer ({reason}). Start it (`ownvoice up` starts the "
            "embedded one) or correct DATABASE_URL."
        )
    if primary:
        exc.args = (f"{kind} [{state}] {primary}",)
    return StoreError(f"PostgreSQL at {address} refused a statement: {primary or kind}.")


def migrate(db: Database) -> list[str]:
    """Bring the schema up to date; return the names of the migrations applied now.

    Works from an empty database and on the schema that the app's own Prisma migrations made. Each file runs
    in a transaction of its own; two migrators take turns. Raises ConfigError when "EmailMessage" flags sent
    mail in another column than `db.sent_column`.
    """
    applied: list[str] = []
    with db.connection() as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK,))
        try:
            connection.execute(
                """
                CREATE TABLE IF NOT EXISTS "OwnvoiceMigration" (
                    "name" text PRIMARY KEY,
                    "sentColumn" text NOT NULL,
                    "appliedAt" timestamptz NOT NULL DEFAULT now()
                )
                """
            )
            _check_sent_column(connection, db.sent_column)
            rows = connection.execute('SELECT "name" FROM "OwnvoiceMigration"').fetchall()
            known = {name for (name,) in rows}
            for path in sorted(MIGRATIONS.glob("*.sql")):
                if path.stem in known:
                    continue
                with connection.transaction():
                    # The files read it back: a trigger must name the column of this installation.
                    connection.execute(
                        "SELECT set_config('ownvoice.sent_column', %s, true)", (db.sent_column,)
                    )
                    connection.execute(path.read_bytes())
                    connection.execute(
                        'INSERT INTO "OwnvoiceMigration" ("name", "sentColumn") VALUES (%s, %s)',
                        (path.stem, db.sent_column),
                    )
                applied.append(path.stem)
        finally:
            if not connection.broken:
                connection.execute("SELECT pg_advisory_unlock(%s)", (MIGRATION_LOCK,))
    return applied


def pending_migrations(db: Database) -> list[str]:
    """Return the names of migrations that `migrate` would apply; changes nothing."""
    with db.connection() as connection:
        known: set[Any] = set()
        if connection.execute("""SELECT to_regclass('"OwnvoiceMigration"')""").fetchone() != (None,):
            rows = connection.execute('SELECT "name" FROM "OwnvoiceMigration"').fetchall()
            known = {name for (name,) in rows}
    return [path.stem for path in sorted(MIGRATIONS.glob("*.sql")) if path.stem not in known]


def _check_sent_column(connection: Connection, sent_column: str) -> None:
    """Refuse a setting that would leave all the app's sent mail uncounted."""
    made_with = connection.execute(
        'SELECT "sentColumn" FROM "OwnvoiceMigration" ORDER BY "name" LIMIT 1'
    ).fetchone()
    if made_with is not None and made_with[0] != sent_column:
        raise ConfigError(
            f'The database was set up with the sent flag "{made_with[0]}", the setting now says '
            f'"{sent_column}". Set OWNVOICE_SENT_COLUMN={made_with[0]} and run again.'
        )
    rows = connection.execute(
        """
        SELECT attname FROM pg_attribute
        WHERE attrelid = to_regclass('"EmailMessage"') AND attnum > 0 AND NOT attisdropped
        """
    ).fetchall()
    columns = {name for (name,) in rows}
    other = next((name for name in ("sent", "isSent") if name in columns), None)
    if columns and sent_column not in columns and other is not None:
        raise ConfigError(
            f'"EmailMessage" has no column "{sent_column}" but flags sent mail in "{other}". '
            f"Set OWNVOICE_SENT_COLUMN={other} and run again."
        )


def _use_utc(connection: Connection) -> None:
    """Make PostgreSQL read the app's `timestamp` columns (UTC without saying so) as UTC."""
    connection.execute("SET TIME ZONE 'UTC'")
