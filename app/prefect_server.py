"""Start the embedded Prefect server; `python -m app.prefect_server --host … --port …` takes its options.

The embedded server keeps its state in SQLite: the embedded PostgreSQL has no `pg_trgm` extension, which
Prefect's first PostgreSQL migration requires. Prefect opens its SQLite transactions as DEFERRED, so one
that reads and then writes fails at once (SQLITE_BUSY_SNAPSHOT, HTTP 503) whenever another one committed
between the two; no timeout helps. Measured: 3 of 9 `create_flow_run` calls right after a run's end. Begun
as IMMEDIATE they wait for each other instead. Prefect has that mode (`with_for_update`) and uses it for
some of its transactions; this module asks for it in all of them and changes nothing else.
"""

from __future__ import annotations

import sys

from prefect.server.database.configurations import AioSqliteConfiguration

_begin_transaction = AioSqliteConfiguration.begin_transaction


def _begin_immediately(self, session, with_for_update=False):  # type: ignore[no-untyped-def]
    return _begin_transaction(self, session, with_for_update=True)


def main() -> None:
    """Patch, then hand over to Prefect's own command line."""
    from prefect.cli import app as command_line

    AioSqliteConfiguration.begin_transaction = _begin_immediately  # type: ignore[method-assign]
    sys.argv = ["prefect", "server", "start", *sys.argv[1:]]
    command_line()


if __name__ == "__main__":
    main()
