"""Telling the app what became of its jobs: signed webhooks from the outbox (deployments/WEBHOOKS.md).

CPU side only: the key that signs never reaches a GPU machine.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import random
import ssl
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

import httpx
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from store import outbox
from store.database import Database
from store.outbox import OutboxMessage
from tasks.tools import database, settings
from training.errors import ConfigError, StoreUnavailable
from training.schemas import Schema
from training.settings import Settings

ATTEMPT_TIMEOUT_S = 10.0
"""Connection, TLS, request and status line together."""
PASS_S = 20.0
"""One call of `deliver_webhooks`: no attempt begins that could not time out within it."""
CONCURRENT = 8
"""Attempts at once: that many receivers may hang before other jobs' messages wait for them."""

DAY_S = 24 * 3600.0
BACK_OFF_S = (10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
"""Seconds after the first, second … failed attempt; from then on hourly."""
HOURLY_S = 3600.0
JITTER = 0.1
"""Share by which a delay is moved either way: a receiver that comes back is not met by all at once."""
MIN_ATTEMPTS = 5
"""A message older than a day is still tried so often (3 minutes): it may have waited behind another one, or
for a machine that was off, without ever having been tried."""


class Receiver(NamedTuple):
    """Where webhooks go and with which key they are signed. Never printed: both may be secrets."""

    url: httpx.URL
    """Without user and password; those are in `auth`, because HTTP libraries log URLs."""
    auth: httpx.BasicAuth | None
    key: str


class Deliveries(Schema):
    """What one call of `deliver_webhooks` did, in messages."""

    delivered: int = 0
    postponed: int = 0
    given_up: int = 0


class _Fate(StrEnum):
    DELIVERED = "delivered"
    POSTPONED = "postponed"
    GIVEN_UP = "given_up"


@task(cache_policy=NO_CACHE)
def deliver_webhooks() -> Deliveries:
    """Deliver due webhooks for at most 20 seconds; trouble with them never fails the flow that asks.

    What is not delivered now stays in the outbox for the next call.
    """
    logger = get_run_logger()
    try:
        done = deliver(database(), settings())
    except (ConfigError, StoreUnavailable) as exc:
        logger.error("no webhooks delivered: %s", exc)
        return Deliveries()
    if done != Deliveries():
        logger.info(
            "webhooks: %s delivered, %s postponed, %s given up", done.delivered, done.postponed, done.given_up
        )
    return done


def deliver(db: Database, configured: Settings, pass_s: float = PASS_S) -> Deliveries:
    """Send due messages, one at a time per job, until none is due or `pass_s` seconds are over.

    Without a receiver only what is older than a day is given up, so that the table does not grow for ever.
    Raises ConfigError when there is a URL but no key, StoreUnavailable.
    """
    outbox.forget_ended(db)
    try:
        receiver = find_receiver(configured)
    except ConfigError:
        outbox.give_up_older_than(db, DAY_S, "no INTERNAL_API_KEY")
        raise
    if receiver is None:
        return Deliveries(given_up=outbox.give_up_older_than(db, DAY_S, "no FINE_TUNING_WEBHOOK_URL"))
    last_start = time.monotonic() + pass_s - ATTEMPT_TIMEOUT_S
    fates = Counter[_Fate]()
    with ThreadPoolExecutor(CONCURRENT, thread_name_prefix="webhook") as threads:
        running = set[Future[_Fate]]()
        while True:
            # Only as many as can be sent at once: a claimed message that waits here would use up its lease.
            due = (
                outbox.claim_messages(db, CONCURRENT - len(running)) if time.monotonic() < last_start else []
            )
            running |= {threads.submit(_attempt, db, receiver, message) for message in due}
            if not running:
                return Deliveries(**{fate.value: count for fate, count in fates.items()})
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            fates.update(future.result() for future in ended)


def find_receiver(configured: Settings) -> Receiver | None:
    """Return where webhooks go, or None when the app asked for none.

    Raises ConfigError without a key: an unsigned webhook could come from anybody.
    """
    if configured.webhook_url is None:
        return None
    if configured.internal_api_key is None:
        raise ConfigError(
            "FINE_TUNING_WEBHOOK_URL is set but INTERNAL_API_KEY is not, and webhooks are never sent "
            "unsigned. Set INTERNAL_API_KEY to the key that the app verifies with."
        )
    url = httpx.URL(configured.webhook_url)
    auth = httpx.BasicAuth(url.username, url.password) if url.userinfo else None
    return Receiver(url.copy_with(userinfo=b""), auth, configured.internal_api_key.get_secret_value())


def sign(key: str, timestamp: str, body: bytes) -> str:
    """Return the hex HMAC-SHA256 (RFC 2104) of `<timestamp>.<body>`; `timestamp` is in Unix seconds."""
    return hmac.new(key.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


def write_body(message: OutboxMessage) -> bytes:
    """Return the JSON of a message: the same bytes at every attempt."""
    told = {
        "id": message.event_id,
        "event": message.event,
        "createdAt": message.created_at.isoformat(),
        "data": message.payload,
    }
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()


def back_off_s(attempts: int) -> float:
    """Return the seconds to wait after so many failed attempts (1 or more), before jitter."""
    return BACK_OFF_S[attempts - 1] if attempts <= len(BACK_OFF_S) else HOURLY_S


def _attempt(db: Database, receiver: Receiver, message: OutboxMessage) -> _Fate:
    """Try one message once and note what became of it."""
    error = send(receiver, message)
    if error is None:
        outbox.mark_delivered(db, message)
        return _Fate.DELIVERED
    if message.age_s >= DAY_S and message.attempts >= MIN_ATTEMPTS:
        outbox.give_up(db, message, error)
        return _Fate.GIVEN_UP
    delay_s = back_off_s(message.attempts) * random.uniform(1 - JITTER, 1 + JITTER)
    outbox.postpone_message(db, message, error, delay_s)
    return _Fate.POSTPONED


def send(receiver: Receiver, message: OutboxMessage) -> str | None:
    """Post one message. Returns None when it was accepted (2xx), else the status or the error's name."""
    try:
        # An event loop, because httpx's own timeouts are per read: a receiver that sends a byte every nine
        # seconds would hold a plain call for hours.
        status = asyncio.run(asyncio.wait_for(_post(receiver, message), ATTEMPT_TIMEOUT_S))
    except Exception as exc:
        # Whatever a receiver's address, TLS or answer brings about; its text may quote the URL or the answer.
        return type(exc).__name__
    return None if 200 <= status < 300 else f"HTTP {status}"


async def _post(receiver: Receiver, message: OutboxMessage) -> int:
    body, timestamp = write_body(message), str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "X-Ownvoice-Event-Id": message.event_id,
        "X-Ownvoice-Timestamp": timestamp,
        "X-Ownvoice-Signature": f"sha256={sign(receiver.key, timestamp, body)}",
    }
    # A redirect is an answer like any other: following it would send people's ids to whoever it names.
    async with (
        httpx.AsyncClient(
            timeout=ATTEMPT_TIMEOUT_S, follow_redirects=False, verify=_tls(), auth=receiver.auth
        ) as client,
        client.stream("POST", receiver.url, content=body, headers=headers) as response,
    ):
        return response.status_code  # the body is not read: it is of no use, and of any size


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Return the trusted certificates, read once (20 ms) and not for every message."""
    return httpx.create_ssl_context()
