"""Webhooks from a real outbox to a real HTTP server: signed, in order, at least once, and not for ever."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner

from app import cli
from app.session import Session
from store import jobs, outbox
from store.database import Database
from store.users import create_user
from tasks import tools, webhooks
from tasks.webhooks import Deliveries, back_off_s, deliver, deliver_webhooks
from training.errors import ConfigError, StoreUnavailable
from training.schemas import Job, Stage
from training.settings import Settings

KEY = "sher"
PASSWORD = "tintin"
ANSWER = "marsupilami"
"""What the receiver answers: it may quote anything, so it must not be kept."""
FAR_AWAY_S = 3600.0


@dataclass
class Received:
    event_id: str
    body: bytes
    headers: dict[str, str]

    @property
    def told(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.body)
        return told

    @property
    def event(self) -> str:
        return f"{self.told['data'].get('jobId')} {self.told['event']}"


Answer = Callable[[Received], int]


@dataclass
class App:
    """The app's end: what it received, and what it answers to each request."""

    url: str = ""
    answer: Answer = lambda received: 200
    received: list[Received] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def events(self) -> list[str]:
        return [received.event for received in self.received]


@pytest.fixture
def app() -> Iterator[App]:
    app = App()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received = Received(self.headers["X-Ownvoice-Event-Id"], body, dict(self.headers))
            app.received.append(received)
            app.paths.append(self.path)
            self.send_response(app.answer(received))
            if self.path == "/moved":
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(len(ANSWER)))
            self.end_headers()
            with suppress(OSError):  # a deliverer that waits no longer
                self.wfile.write(ANSWER.encode())

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    app.url = f"http://127.0.0.1:{server.server_port}/hook"
    yield app
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(autouse=True)
def one_attempt_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed message is not due again within the same call, even on a machine that stands still."""
    monkeypatch.setattr(webhooks, "back_off_s", lambda attempts: FAR_AWAY_S)


def configured(url: str | None, key: str | None = KEY) -> Settings:
    return Settings.model_validate({"FINE_TUNING_WEBHOOK_URL": url, "INTERNAL_API_KEY": key})


def new_job(db: Database, name: str) -> Job:
    user = create_user(db, f"{name}@example.org", user_id=f"u-{name}", consent=True)
    return jobs.create_job(db, user.id, base_model="tiny", config={}, lora_rank=8, lora_alpha=16.0)


def failed_job(db: Database, name: str) -> Job:
    job = new_job(db, name)
    jobs.fail_job(db, job.id, "SERVING", "The engine does not answer.")
    return job


def execute(db: Database, statement: Any, *values: Any) -> list[Any]:
    with db.connection() as connection:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def all_due(db: Database) -> None:
    """Let every lease and every wait be over."""
    execute(db, 'UPDATE "Outbox" SET "nextAttemptAt" = now()')


def rows(
    db: Database, columns: str = '"deliveredAt" IS NOT NULL, "givenUpAt" IS NOT NULL, "lastError"'
) -> Any:
    return execute(db, f'SELECT {columns} FROM "Outbox" ORDER BY "id"')


def test_delivered_message_is_signed_over_timestamp_and_body(db: Database, app: App) -> None:
    job = failed_job(db, "anna")
    assert deliver(db, configured(app.url)) == Deliveries(delivered=1)
    (received,) = app.received
    timestamp = received.headers["X-Ownvoice-Timestamp"]
    expected = hmac.new(KEY.encode(), f"{timestamp}.".encode() + received.body, hashlib.sha256).hexdigest()
    assert received.headers["X-Ownvoice-Signature"] == f"sha256={expected}"
    assert abs(time.time() - int(timestamp)) < 60
    assert received.headers["Content-Type"] == "application/json"
    told = received.told
    assert told.keys() == {"id", "event", "createdAt", "data"}
    assert (told["id"], told["event"]) == (received.event_id, "job.failed")
    assert (told["data"]["jobId"], told["data"]["status"], told["data"]["errorCode"]) == (
        job.id,
        "FAILED",
        "SERVING",
    )
    assert deliver(db, configured(app.url)) == Deliveries()


def test_message_that_met_a_500_comes_again_under_the_same_id_until_a_2xx(db: Database, app: App) -> None:
    failed_job(db, "anna")
    app.answer = lambda received: 500 if len(app.received) == 1 else 202
    assert deliver(db, configured(app.url)) == Deliveries(postponed=1)
    assert rows(db) == [(False, False, "HTTP 500")]
    assert deliver(db, configured(app.url)) == Deliveries()  # not yet due
    all_due(db)
    assert deliver(db, configured(app.url)) == Deliveries(delivered=1)
    first, second = app.received
    assert (first.event_id, first.body) == (second.event_id, second.body)
    assert rows(db) == [(True, False, None)]


def test_failed_attempts_wait_as_the_schedule_says(
    db: Database, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "back_off_s", back_off_s)
    failed_job(db, "anna")
    app.answer = lambda received: 404
    waits = []
    for _ in range(4):
        deliver(db, configured(app.url))
        ((wait,),) = rows(db, """extract(epoch FROM "nextAttemptAt" - now())::float8""")
        waits.append(wait)
        all_due(db)
    assert waits == [pytest.approx(nominal, rel=0.1, abs=1) for nominal in (10, 30, 60, 120)]


def test_failing_job_keeps_its_order_and_holds_up_no_other_job(db: Database, app: App) -> None:
    anna, bert = new_job(db, "anna"), new_job(db, "bert")
    for job in (anna, bert):
        jobs.enter_stage(db, job.id, Stage.EXTRACT)
        jobs.enter_stage(db, job.id, Stage.PREPARE)
        jobs.fail_job(db, job.id, "X", "x")
    steps = ["job.extracting_data", "job.preparing_data", "job.failed"]
    app.answer = lambda received: 503 if anna.id in received.event else 200
    assert deliver(db, configured(app.url)) == Deliveries(delivered=3, postponed=1)
    assert [event for event in app.events() if bert.id in event] == [f"{bert.id} {step}" for step in steps]
    assert [event for event in app.events() if anna.id in event] == [f"{anna.id} {steps[0]}"]
    app.answer = lambda received: 200
    app.received.clear()
    all_due(db)
    assert deliver(db, configured(app.url)) == Deliveries(delivered=3)
    assert app.events() == [f"{anna.id} {step}" for step in steps]


def test_messages_without_a_job_keep_their_order_per_person(db: Database, app: App) -> None:
    for name in ("anna", "bert"):
        user = create_user(db, f"{name}@example.org", user_id=f"u-{name}")
        with db.transaction() as connection:
            for count in (100, 110):
                outbox.add_message(connection, user.id, None, f"{name} {count}", {"count": count})
    app.answer = lambda received: 500 if received.told["event"] == "anna 100" else 200
    assert deliver(db, configured(app.url)) == Deliveries(delivered=2, postponed=1)
    assert sorted(received.told["event"] for received in app.received) == ["anna 100", "bert 100", "bert 110"]


def test_crash_after_delivery_repeats_the_same_event_id(
    db: Database, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed_job(db, "anna")
    with monkeypatch.context() as crash:

        def die(db: Database, message: outbox.OutboxMessage) -> None:
            raise StoreUnavailable("PostgreSQL does not answer.")

        crash.setattr(outbox, "mark_delivered", die)
        with pytest.raises(StoreUnavailable):
            deliver(db, configured(app.url))
    assert deliver(db, configured(app.url)) == Deliveries()  # the lease
    all_due(db)
    assert deliver(db, configured(app.url)) == Deliveries(delivered=1)
    assert len(app.received) == 2 and len({received.event_id for received in app.received}) == 1


def test_redirect_is_not_followed(db: Database, app: App) -> None:
    failed_job(db, "anna")
    app.answer = lambda received: 307
    assert deliver(db, configured(app.url.replace("/hook", "/moved"))) == Deliveries(postponed=1)
    assert app.paths == ["/moved"] and rows(db) == [(False, False, "HTTP 307")]


def test_hanging_receiver_ends_in_a_timeout_and_other_messages_pass(
    db: Database, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "ATTEMPT_TIMEOUT_S", 1.0)
    anna, bert, cleo = (failed_job(db, name) for name in ("anna", "bert", "cleo"))
    over = threading.Event()
    arrived: dict[str, float] = {}

    def answer(received: Received) -> int:
        arrived[received.event] = time.monotonic()
        if anna.id in received.event:
            over.wait(30)
        return 200

    app.answer = answer
    started = time.monotonic()
    assert deliver(db, configured(app.url), pass_s=3.0) == Deliveries(delivered=2, postponed=1)
    over.set()
    assert time.monotonic() - started < 3.0
    assert max(arrived[f"{job.id} job.failed"] for job in (bert, cleo)) - started < 1.0
    assert rows(db)[0] == (False, False, "TimeoutError")


def test_receiver_that_drips_its_answer_is_cut_off(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "ATTEMPT_TIMEOUT_S", 1.0)
    failed_job(db, "anna")
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 100:
                try:
                    connection.sendall(bytes([byte]))
                except OSError:
                    return
                time.sleep(0.1)

    threading.Thread(target=drip, daemon=True).start()
    started = time.monotonic()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    assert deliver(db, configured(url), pass_s=2.0) == Deliveries(postponed=1)
    assert time.monotonic() - started < 2.5
    listener.close()


def test_pass_ends_in_its_time_when_everything_hangs(
    db: Database, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "ATTEMPT_TIMEOUT_S", 0.5)
    for number in range(3 * webhooks.CONCURRENT):
        failed_job(db, f"user{number}")
    over = threading.Event()
    app.answer = lambda received: 200 if over.wait(30) else 500
    started = time.monotonic()
    done = deliver(db, configured(app.url), pass_s=1.0)
    elapsed = time.monotonic() - started
    over.set()
    assert elapsed < 1.5 and done.delivered == 0
    # What was not begun was not claimed either: the next call has it at once.
    assert rows(db, """count(*) FILTER (WHERE "attempts" = 0) OVER ()""")[0][0] == 24 - done.postponed > 0


def test_two_deliverers_at_once_send_every_message_once_and_in_order(db: Database, app: App) -> None:
    made = [new_job(db, f"user{number}") for number in range(10)]
    for job in made:
        jobs.enter_stage(db, job.id, Stage.EXTRACT)
        jobs.enter_stage(db, job.id, Stage.PREPARE)
        jobs.fail_job(db, job.id, "X", "x")
    done: list[Deliveries] = []
    threads = [
        threading.Thread(target=lambda: done.append(deliver(db, configured(app.url)))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one.delivered for one in done) == 30
    assert len(app.received) == 30 == len({received.event_id for received in app.received})
    for job in made:
        told = [event.split()[1] for event in app.events() if job.id in event]
        assert told == ["job.extracting_data", "job.preparing_data", "job.failed"]


def test_deliverer_that_slept_through_its_lease_leaves_the_next_ones_alone(db: Database) -> None:
    failed_job(db, "anna")
    (slept,) = outbox.claim_messages(db)
    all_due(db)
    (awake,) = outbox.claim_messages(db)
    outbox.postpone_message(db, slept, "HTTP 500", delay_s=0)
    outbox.give_up(db, slept, "HTTP 500")
    assert outbox.claim_messages(db) == [] and awake.attempts == 2
    outbox.mark_delivered(db, awake)
    assert rows(db) == [(True, False, None)]


def test_message_that_failed_for_a_day_is_given_up_and_the_next_goes(db: Database, app: App) -> None:
    job = new_job(db, "anna")
    jobs.enter_stage(db, job.id, Stage.EXTRACT)
    jobs.fail_job(db, job.id, "X", "x")
    app.answer = lambda received: 500 if "extracting" in received.event else 200
    deliver(db, configured(app.url))
    execute(db, """UPDATE "Outbox" SET "createdAt" = now() - interval '25 hours'""")
    execute(db, 'UPDATE "Outbox" SET "attempts" = 30 WHERE "attempts" > 0')
    all_due(db)
    assert deliver(db, configured(app.url)) == Deliveries(delivered=1, given_up=1)
    assert rows(db) == [(False, True, "HTTP 500"), (True, False, None)]
    assert app.events()[-1] == f"{job.id} job.failed"


def test_old_message_that_was_never_tried_is_not_given_up_at_its_first_failure(
    db: Database, app: App
) -> None:
    failed_job(db, "anna")
    execute(db, """UPDATE "Outbox" SET "createdAt" = now() - interval '3 days'""")
    app.answer = lambda received: 503
    for _ in range(webhooks.MIN_ATTEMPTS - 1):
        assert deliver(db, configured(app.url)) == Deliveries(postponed=1)
        all_due(db)
    assert deliver(db, configured(app.url)) == Deliveries(given_up=1)


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9/"])
def test_without_a_receiver_or_a_key_nothing_is_sent_and_a_days_messages_are_kept(
    url: str | None, db: Database, app: App
) -> None:
    failed_job(db, "anna")
    failed_job(db, "bert")
    execute(db, """UPDATE "Outbox" SET "createdAt" = now() - interval '25 hours' WHERE "userId" = 'u-bert'""")
    if url is None:
        assert deliver(db, configured(None)) == Deliveries(given_up=1)
    else:
        with pytest.raises(ConfigError, match="never sent unsigned"):
            deliver(db, configured(app.url, key=None))
    assert [given_up for _, given_up, _ in rows(db)] == [False, True] and app.received == []
    assert deliver(db, configured(app.url)) == Deliveries(delivered=1)


def test_ended_messages_are_forgotten_after_a_month_and_open_ones_are_not(db: Database) -> None:
    for name in ("anna", "bert", "cleo"):
        failed_job(db, name)
    execute(db, """UPDATE "Outbox" SET "createdAt" = now() - interval '31 days' WHERE "userId" <> 'u-cleo'""")
    execute(db, """UPDATE "Outbox" SET "deliveredAt" = now() WHERE "userId" <> 'u-bert'""")
    assert outbox.forget_ended(db) == 1
    assert rows(db, '"userId"') == [("u-bert",), ("u-cleo",)]


def test_delivery_state_counts_what_became_of_one_jobs_messages(db: Database, app: App) -> None:
    job = new_job(db, "anna")
    failed_job(db, "bert")
    jobs.enter_stage(db, job.id, Stage.EXTRACT)
    jobs.enter_stage(db, job.id, Stage.PREPARE)
    jobs.fail_job(db, job.id, "X", "x")
    app.answer = lambda received: 500 if "preparing" in received.event else 200
    deliver(db, configured(app.url))
    state = outbox.delivery_state(db, job.id)
    assert state == outbox.DeliveryState(delivered=1, waiting=2, given_up=0, last_error="HTTP 500")


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9/"])
def test_show_tells_of_webhooks_when_they_are_sent(
    url: str | None, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = failed_job(db, "anna")
    session = Session()
    session.__dict__["db"] = db  # its own would stay open
    monkeypatch.setattr(cli, "Session", lambda: session)
    monkeypatch.setenv("FINE_TUNING_WEBHOOK_URL", url or "")
    shown = CliRunner().invoke(cli.app, ["show", job.id, "--json"])
    assert shown.exit_code == 0, shown.output
    expected = {"delivered": 0, "waiting": 1, "givenUp": 0, "lastError": None} if url else None
    assert json.loads(shown.stdout)["webhooks"] == expected
    printed = CliRunner().invoke(cli.app, ["show", job.id])
    assert printed.exit_code == 0 and ("webhooks" in printed.output) is (url is not None)


def test_no_secret_and_no_answer_is_kept_in_logs_or_rows(
    db: Database,
    database_url: str,
    app: App,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The task as Prefect calls it, with every logger of the process at its most talkative."""
    monkeypatch.setattr(webhooks, "get_run_logger", lambda: logging.getLogger("task"))
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("INTERNAL_API_KEY", KEY * 4)
    monkeypatch.setenv("FINE_TUNING_WEBHOOK_URL", app.url.replace("://", f"://anna:{PASSWORD}@"))
    tools.settings.cache_clear()
    tools.database.cache_clear()
    app.answer = lambda received: 500 if "bert" in received.told["data"]["userId"] else 200
    failed_job(db, "anna")
    failed_job(db, "bert")
    try:
        with caplog.at_level(logging.DEBUG):
            assert deliver_webhooks.fn() == Deliveries(delivered=1, postponed=1)
            # Nobody listens there; the error of the HTTP library names the address.
            monkeypatch.setenv("FINE_TUNING_WEBHOOK_URL", f"http://anna:{PASSWORD}@127.0.0.1:9/")
            tools.settings.cache_clear()
            all_due(db)
            assert deliver_webhooks.fn() == Deliveries(postponed=1)
            monkeypatch.delenv("INTERNAL_API_KEY")
            tools.settings.cache_clear()
            assert deliver_webhooks.fn() == Deliveries()
    finally:
        tools.database().close()
        tools.database.cache_clear()
        tools.settings.cache_clear()
    assert app.received[0].headers["Authorization"].startswith("Basic ")
    written = caplog.text + str(execute(db, 'SELECT to_jsonb(o)::text FROM "Outbox" o'))
    assert "webhooks: 1 delivered, 1 postponed, 0 given up" in written and "ConnectError" in written
    assert "never sent unsigned" in written
    for secret in (KEY * 4, PASSWORD, ANSWER):
        assert secret not in written
