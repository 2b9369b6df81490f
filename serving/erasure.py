"""Remove all adapters of one user from an engine, and see that they are gone.

By the name's first part and not only by the job rows: a crashed job may have left what no row tells of.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from serving.adapter_folder import AdapterFolder
from serving.base import voice_name
from serving.ollama import OllamaServing
from training.errors import AdapterRefused, OwnvoiceError, ServingError, ServingUnavailable
from training.schemas import EraseItem, EraseResult

ADAPTER, BLOB = "adapter", "blob"


def erase_from_folder(folder: AdapterFolder, user_id: str, digests: Collection[str]) -> list[EraseItem]:
    """Remove a user's adapters from the llamacpp engine's folder; its processes drop them when next asked.

    `digests`: of all adapters that the user ever had, to know copies that a killed publish left.
    """
    where = "llamacpp"
    found = _of_user(folder.names(), user_id)
    for name in found:
        folder.remove(name)
    left = _of_user(folder.names(), user_id)
    if left:
        raise ServingError(f"{left[0]} is still in the adapters folder after its deletion. Try again.")
    staged = folder.remove_staged(digests)
    gone = "neither file nor manifest is in the folder"
    items = [_item(ADAPTER, name, where, EraseResult.REMOVED, gone) for name in found]
    if staged:
        items.append(
            _item(
                BLOB, "unfinished copies", where, EraseResult.REMOVED, f"{staged} deleted, by their digests"
            )
        )
    return items or [_none_left(user_id, where, "no file of that name is in the folder")]


def erase_from_ollama(engine: OllamaServing, user_id: str, digests: Iterable[str]) -> list[EraseItem]:
    """Remove a user's models and adapter files from an Ollama server.

    `digests`: of all adapters that the user ever had; an upload that never became a model is found by them.
    Raises ServingUnavailable, ServingError.
    """
    where = f"ollama {engine.place}"
    found = _of_user(engine.names(), user_id)
    served = {digest for name in found for digest in engine.adapters_of(name)}
    for name in found:
        engine.remove(name)
    left = _of_user(engine.names(), user_id)
    if left:
        raise ServingError(f"{left[0]} is still on the Ollama server after its deletion. Try again.")
    items = [
        _item(ADAPTER, name, where, EraseResult.REMOVED, "the server does not list it any more")
        for name in found
    ] or [_none_left(user_id, where, "the server lists no model of that name")]
    for digest in sorted(served.union(digests)):
        items.append(_erase_blob(engine, user_id, digest, where, was_served=digest in served))
    return items


def _erase_blob(
    engine: OllamaServing, user_id: str, digest: str, where: str, *, was_served: bool
) -> EraseItem:
    gone = "HEAD /api/blobs answers 404"
    if not engine.holds_blob(digest):
        result = EraseResult.REMOVED if was_served else EraseResult.ABSENT
        return _item(BLOB, digest, where, result, gone)
    users = [name for name in engine.names() if digest in engine.adapters_of(name)]
    if users:
        return _item(BLOB, digest, where, EraseResult.KEPT, f"still part of {', '.join(sorted(users))}")
    try:
        engine.drop_blob(digest, f"{voice_name(user_id)}:erase")
    except ServingUnavailable:
        raise
    except (ServingError, AdapterRefused) as exc:
        return _item(BLOB, digest, where, EraseResult.KEPT, f"no model uses it; {_reason(exc)}")
    if engine.holds_blob(digest):
        return _item(BLOB, digest, where, EraseResult.KEPT, "no model uses it; the server has OLLAMA_NOPRUNE")
    return _item(BLOB, digest, where, EraseResult.REMOVED, gone)


def _reason(exc: OwnvoiceError) -> str:
    return f"the server deletes it when it starts, an hour after the upload ({exc.code})"


def _of_user(names: Iterable[str], user_id: str) -> list[str]:
    """Return the names whose whole first part is the user's: `emailai-ann` is not `emailai-anna`."""
    return sorted(name for name in names if name.lower().partition(":")[0] == voice_name(user_id))


def _none_left(user_id: str, where: str, verified: str) -> EraseItem:
    return _item(ADAPTER, voice_name(user_id), where, EraseResult.ABSENT, verified)


def _item(kind: str, name: str, where: str, result: EraseResult, verified: str) -> EraseItem:
    return EraseItem(kind=kind, name=name, where=where, result=result, verified=verified)
