"""What Prefect sends from the background: to the server in use, and never without a limit to the wait."""

from __future__ import annotations

import socket
import time
from uuid import uuid4

import pytest

from tests.prefect_server import PrefectServer, send_what_is_queued, used_by_flows

LIMIT_S = 1.0
EVENTS = 10
"""Prefect tries for 7 s to send each of them to a server that is gone."""


def test_server_that_is_gone_holds_nobody_up_and_takes_no_later_event_along(
    shared_prefect_server: PrefectServer,
) -> None:
    from prefect.events import emit_event
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}/api"
    started = time.monotonic()
    with temporary_settings({PREFECT_API_URL: nowhere}):
        for _ in range(EVENTS):
            emit_event("ownvoice.test", {"prefect.resource.id": "lost"})
        with pytest.raises(pytest.fail.Exception, match="still sending after 1 s"):
            send_what_is_queued(LIMIT_S)
    assert time.monotonic() - started < LIMIT_S + 5

    resource = f"arrives-{uuid4()}"
    with used_by_flows(shared_prefect_server):
        emit_event("ownvoice.test", {"prefect.resource.id": resource})
    wanted = {"filter": {"resource": {"id": [resource]}}}
    deadline = time.monotonic() + 30  # the server writes events in batches
    while shared_prefect_server.post("events/filter", wanted)["total"] != 1:
        assert time.monotonic() < deadline, "the event did not arrive"
        time.sleep(0.2)
