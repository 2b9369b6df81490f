"""What the Prefect server of a benchmark's stack knows of its flow runs, read over REST."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import httpx

from training.errors import OwnvoiceError

LOADED = re.compile(r"loaded \S+ in [\d.]+ s$")
"""What tasks/train.py logs each time that it reads a base model's weights into memory."""
ENDED = re.compile(r"\d+ of \d+ adapters trained on \S+$")
"""The last words of train-adapters: the lines before them have reached the server as well."""
LOGS_S = 30.0
"""Log lines are sent in batches, every two seconds and when the process ends."""
PAGE = 200


def start_time(api_url: str, run_id: str | None) -> datetime:
    """Return when a flow run first was Running."""
    run = httpx.get(f"{api_url}/flow_runs/{run_id}", timeout=30).raise_for_status()
    return datetime.fromisoformat(run.json()["start_time"])


def training_logs(api_url: str, job_ids: Sequence[str]) -> list[list[str]]:
    """Return the log lines of each GPU flow run that trained one of these jobs, when all of them are there.

    Raises OwnvoiceError when a run has not told of its end: its log may lack lines.
    """
    tags = {"tags": {"any_": [f"job:{job_id}" for job_id in job_ids]}}
    deadline = time.monotonic() + LOGS_S
    while True:
        runs = _filter(api_url, "flow_runs", {"flow_runs": tags})
        logs = [_messages(api_url, [run["id"]]) for run in runs]
        silent = sum(not any(map(ENDED.match, messages)) for messages in logs)
        if logs and not silent:
            return logs
        if time.monotonic() > deadline:
            raise OwnvoiceError(
                f"{silent} of {len(logs)} training runs have not logged their end within {LOGS_S:.0f} s. "
                "Base loads cannot be counted; measure again."
            )
        time.sleep(1)


def count_base_loads(messages: Iterable[str]) -> int:
    """Count how often a base model was loaded."""
    return sum(LOADED.match(message) is not None for message in messages)


def started_by(api_url: str, run_id: str) -> str:
    """Return what woke the dispatcher that started a run: `event`, or `schedule` (the minute was first)."""
    began = {"state": {"type": {"any_": ["RUNNING", "COMPLETED"]}}}
    flow = {"name": {"any_": ["dispatch-jobs"]}}
    for dispatcher in _filter(api_url, "flow_runs", {"flows": flow, "flow_runs": began}):
        if any(message.endswith(run_id) for message in _messages(api_url, [dispatcher["id"]])):
            return "schedule" if dispatcher["auto_scheduled"] else "event"
    return "unknown"


def _messages(api_url: str, run_ids: Sequence[str]) -> list[str]:
    found = _filter(api_url, "logs", {"logs": {"flow_run_id": {"any_": list(run_ids)}}})
    return [line["message"] for line in found]


def _filter(api_url: str, kind: str, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all pages of a filter."""
    found: list[dict[str, Any]] = []
    while True:
        body = {**wanted, "limit": PAGE, "offset": len(found)}
        page = httpx.post(f"{api_url}/{kind}/filter", json=body, timeout=30).raise_for_status().json()
        found += page
        if len(page) < PAGE:
            return found
