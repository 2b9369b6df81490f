"""Webhooks without a network: what is signed, when it is tried again, and when nothing is sent."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app import doctor, terminal
from app.session import Session
from store.outbox import DeliveryState, OutboxMessage
from tasks import webhooks
from tasks.webhooks import back_off_s, find_receiver, sign, write_body
from training.errors import ConfigError
from training.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
KEY = "sher"
URL = "https://app.example.org/api/webhooks/fine-tuning"


def configured(url: str | None = URL, key: str | None = KEY) -> Settings:
    return Settings.model_validate({"FINE_TUNING_WEBHOOK_URL": url, "INTERNAL_API_KEY": key})


def message(**fields: Any) -> OutboxMessage:
    defaults = {
        "id": 1,
        "event_id": "e-1",
        "user_id": "u-anna",
        "job_id": "j-1",
        "event": "job.failed",
        "payload": {"status": "FAILED"},
        "attempts": 1,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "age_s": 0.0,
    }
    return OutboxMessage(**{**defaults, **fields})


def snippet(language: str) -> str:
    """Return the code of one language in deployments/WEBHOOKS.md."""
    (code,) = re.findall(
        rf"```{language}\n(.*?)```", (ROOT / "deployments/WEBHOOKS.md").read_text(encoding="utf-8"), re.DOTALL
    )
    return str(code)


@pytest.fixture(scope="module")
def is_from_ownvoice() -> Callable[..., bool]:
    """The verification that the documentation gives to receivers."""
    names: dict[str, Any] = {}
    exec(compile(snippet("python"), "WEBHOOKS.md", "exec"), names)
    verify: Callable[..., bool] = names["is_from_ownvoice"]
    return verify


def signed(body: bytes, timestamp: str) -> dict[str, str]:
    return {
        "X-Ownvoice-Timestamp": timestamp,
        "X-Ownvoice-Signature": f"sha256={sign(KEY, timestamp, body)}",
    }


def test_signature_is_the_hmac_of_timestamp_dot_body() -> None:
    # printf '1767225600.{"id":"e-1"}' | openssl dgst -sha256 -hmac sher
    assert (
        sign("sher", "1767225600", b'{"id":"e-1"}')
        == "4db9481a34042814fb7ddc7c4ebee96734c9b766133b66896df77dc37fe87a54"
    )


def test_documented_receiver_accepts_what_is_signed_and_nothing_else(
    is_from_ownvoice: Callable[..., bool],
) -> None:
    body, now = write_body(message()), int(time.time())
    assert is_from_ownvoice(KEY, signed(body, str(now)), body)
    assert not is_from_ownvoice(KEY, signed(body, str(now)), body + b" ")
    assert not is_from_ownvoice("other", signed(body, str(now)), body)
    assert not is_from_ownvoice(KEY, signed(body, str(now)) | {"X-Ownvoice-Timestamp": str(now - 1)}, body)
    assert not is_from_ownvoice(KEY, {}, body)


@pytest.mark.parametrize(("age_s", "accepted"), [(290, True), (310, False), (-310, False)])
def test_documented_receiver_refuses_timestamps_five_minutes_off(
    is_from_ownvoice: Callable[..., bool], age_s: int, accepted: bool
) -> None:
    body, then = b"{}", str(int(time.time()) - age_s)
    assert is_from_ownvoice(KEY, signed(body, then), body) is accepted


def test_body_is_the_same_at_every_attempt() -> None:
    body = write_body(message())
    assert body == write_body(message(attempts=9, age_s=4000.0))
    assert body.decode() == (
        '{"id":"e-1","event":"job.failed","createdAt":"2026-01-01T00:00:00+00:00","data":{"status":"FAILED"}}'
    )


def test_back_off_grows_to_an_hour_and_sums_to_a_day() -> None:
    delays = [back_off_s(attempts) for attempts in range(1, 32)]
    assert delays[:8] == [10, 30, 60, 120, 300, 600, 1800, 3600]
    assert delays == sorted(delays) and set(delays[7:]) == {3600}
    assert 23 * 3600 < sum(delays[:30]) < webhooks.DAY_S < sum(delays)


def test_url_without_a_key_is_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"INTERNAL_API_KEY is not.*never sent unsigned"):
        find_receiver(configured(key=None))
    assert find_receiver(configured(url=None, key=None)) is None


def test_password_of_the_url_is_taken_out_of_the_url() -> None:
    receiver = find_receiver(configured("https://anna:p%40ss@app.example.org/hook?a=1"))
    assert receiver is not None
    assert str(receiver.url) == "https://app.example.org/hook?a=1"
    assert receiver.auth is not None and receiver.auth._auth_header.startswith("Basic ")


@pytest.mark.parametrize(
    ("url", "key", "ok", "said"),
    [
        (None, None, True, "off"),
        ("https://anna:tintin@app.example.org/hook?t=tintin", KEY, True, "to app.example.org, signed"),
        ("https://anna:tintin@app.example.org/hook?t=tintin", None, False, "INTERNAL_API_KEY is not set"),
    ],
)
def test_doctor_says_whether_webhooks_can_be_sent(
    url: str | None, key: str | None, ok: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session()
    monkeypatch.setitem(session.__dict__, "settings", configured(url, key))
    found = doctor._webhooks(session)
    assert found.ok is ok and said in found.detail and bool(found.remedy) is not ok
    assert "tintin" not in found.detail + found.remedy and KEY not in found.detail.split()


def test_state_of_a_jobs_webhooks_is_one_line() -> None:
    state = DeliveryState(delivered=3, waiting=2, given_up=1, last_error="HTTP 503")
    assert terminal.webhooks_line(state) == "delivered 3, waiting 2, given up 1, last error HTTP 503"
    assert (
        terminal.webhooks_line(DeliveryState(delivered=6, waiting=0, given_up=0)) == "delivered 6, waiting 0"
    )
    assert terminal.webhooks_line(None) == ""
