"""Receipts of erasures: JSON under `<storage>/receipts/`, written anew after every step."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from serving.base import voice_name
from tasks.private_file import read_private, write_private
from training.errors import StorageError
from training.schemas import EraseItem, EraseReceipt, EraseResult

RECEIPTS = "receipts"
_BETTER = (EraseResult.ABSENT, EraseResult.KEPT, EraseResult.REMOVED)
"""A step that is tried again finds nothing where its first try removed something."""


def open_receipt(storage_url: str, user_id: str, keep_mail: bool) -> str:
    """Write an empty receipt and return its file name."""
    started = datetime.now(UTC)
    # An id of the app's may hold what a file name cannot; the serving name's form of it is safe.
    safe_id = voice_name(user_id).partition("-")[2]
    name = f"{safe_id}-{started:%Y%m%dT%H%M%S.%fZ}.json"
    _write(storage_url, name, EraseReceipt(user_id=user_id, started_at=started, keep_mail=keep_mail))
    return name


def read_receipt(storage_url: str, name: str) -> EraseReceipt:
    """Return a receipt. Raises StorageError."""
    text = read_private(storage_url, RECEIPTS, name)
    try:
        return EraseReceipt.model_validate_json(text or "")
    except ValueError as exc:
        raise StorageError(f"The receipt {name} cannot be read ({type(exc).__name__}).") from exc


def add_items(storage_url: str, name: str, items: list[EraseItem]) -> None:
    """Add what a step removed; of two entries for one thing the telling one stays."""
    receipt = read_receipt(storage_url, name)
    merged = {(item.kind, item.name, item.where): item for item in receipt.items}
    for item in items:
        key = (item.kind, item.name, item.where)
        if key not in merged or _BETTER.index(item.result) >= _BETTER.index(merged[key].result):
            merged[key] = item
    _write(storage_url, name, receipt.model_copy(update={"items": tuple(merged.values())}))


def close_receipt(storage_url: str, name: str, *, complete: bool) -> EraseReceipt:
    """Note that the erasure went through to its end."""
    receipt = read_receipt(storage_url, name)
    closed = receipt.model_copy(update={"finished_at": datetime.now(UTC), "complete": complete})
    _write(storage_url, name, closed)
    return closed


def _write(storage_url: str, name: str, receipt: EraseReceipt) -> None:
    # Who had themselves erased is nobody else's business.
    text = json.dumps(receipt.to_json_dict(), ensure_ascii=False, indent=1) + "\n"
    write_private(storage_url, RECEIPTS, name, text)
