"""What finished trainings took: the ground of every estimate."""

from __future__ import annotations

from psycopg.rows import class_row

from store.database import Database
from training.schemas import MeasuredRun

NEWEST_RUNS = 40
"""Runs that are looked through for those of one preset."""


def measured_runs(db: Database, base_model: str) -> tuple[str, list[MeasuredRun]]:
    """Return the device of the newest finished training of any base, and what trainings of `base_model` took
    there, newest first.

    The newest device is where the pool trains now: a base that moved from a laptop to a GPU must not be
    estimated by the laptop. A processor that single-threaded trainers shared is the same device as when one
    process has all its threads, which is how a lone job is trained: such runs count, where there are any.
    Otherwise the seconds of trainers are shared as the price is. ("", []) before the first training.
    """
    with db.connection() as connection:
        newest = connection.execute(
            """
            SELECT "metrics" ->> 'device', coalesce(("metrics" ->> 'trainers')::int, 1) FROM "FineTuningJob"
            WHERE "metrics" ? 'deviceSeconds' ORDER BY "createdAt" DESC LIMIT 1
            """
        ).fetchone()
        if newest is None or not newest[0]:
            return "", []
        device = str(newest[0])
        if newest[1] > 1:
            alone = connection.execute(
                """
                SELECT "metrics" ->> 'device' FROM "FineTuningJob"
                WHERE "baseModel" = %s AND "metrics" ? 'deviceSeconds'
                  AND coalesce(("metrics" ->> 'trainers')::int, 1) = 1
                  AND "metrics" ->> 'device' LIKE 'cpu %%'
                ORDER BY "createdAt" DESC LIMIT 1
                """,
                (base_model,),
            ).fetchone()
            device = str(alone[0]) if alone is not None else device
        runs = (
            connection.cursor(row_factory=class_row(MeasuredRun))
            .execute(
                """
                SELECT %(device)s AS device, "config",
                       ("metrics" ->> 'trainTokens')::bigint AS train_tokens,
                       ("metrics" ->> 'trainSeconds')::float8
                         / coalesce(("metrics" ->> 'trainers')::int, 1) AS train_seconds,
                       ("metrics" ->> 'deviceSeconds')::float8 AS device_seconds,
                       coalesce(("metrics" ->> 'loadSeconds')::float8, 0)
                         / coalesce(("metrics" ->> 'trainers')::int, 1) AS load_seconds,
                       ("metrics" ->> 'steps')::int AS steps, ("metrics" ->> 'epochs')::float8 AS epochs,
                       coalesce("trainingEmails", 0) AS examples,
                       coalesce(("metrics" ->> 'trainCharacters')::bigint, 0) AS characters
                FROM "FineTuningJob"
                WHERE "baseModel" = %(base)s AND "metrics" ? 'deviceSeconds'
                  AND ("metrics" ->> 'deviceSeconds')::float8 > 0
                  AND "metrics" ->> 'device' = %(device)s
                  AND ("metrics" ->> 'trainTokens')::bigint > 0
                  AND ("metrics" ->> 'trainSeconds')::float8 > 0 AND ("metrics" ->> 'steps')::int > 0
                ORDER BY "createdAt" DESC LIMIT %(limit)s
                """,
                {"device": device, "base": base_model, "limit": NEWEST_RUNS},
            )
            .fetchall()
        )
    return device, runs
