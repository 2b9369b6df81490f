"""What Prefect keeps about one person: flow runs with their logs, artifacts. Ids and counts, but theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterName,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import Artifact, FlowRun
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelling

from training.schemas import EraseItem, EraseResult, Job

WHERE = "prefect"
PAGE = 200
"""The most that the server returns at once."""
BATCH = 50
"""Ids or keys in one filter."""
UNREACHABLE = (httpx.HTTPError, PrefectHTTPStatusError)

_T = TypeVar("_T")


def is_alive(run_id: str | None) -> bool:
    """Tell whether a flow run is known and has not ended; an unreachable server knows of none."""
    run = _read_run(run_id)
    return run is not None and not (run.state is not None and run.state.is_final())


def cancel_run(run_id: str | None, job_id: str) -> None:
    """Ask Prefect to stop a flow run, unless it works for other jobs as well."""
    run = _read_run(run_id)
    if run is None or _works_for_others(run, {job_id}):
        return
    try:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run.id, Cancelling(), force=False)
    except UNREACHABLE:
        return  # whoever waits for its end gives up by the clock


def remove_records(user_id: str, addresses: Iterable[str], jobs: Sequence[Job]) -> list[EraseItem]:
    """Delete the ended flow runs (with their logs) and the artifacts of a person's jobs.

    Kept, and said so: runs that worked for other people's jobs too, and events, which Prefect cannot delete.
    A server that does not answer is noted, not raised: it holds ids and counts only.
    """
    job_ids = {job.id for job in jobs}
    try:
        with get_client(sync_client=True) as client:
            found = _runs_of(client, user_id, addresses, jobs)
            own_run = runtime.flow_run.id
            runs = {key: run for key, run in found.items() if str(key) != own_run}
            shared = {key for key, run in runs.items() if _works_for_others(run, job_ids)}
            alive = {
                key for key, run in runs.items() if run.state is not None and not run.state.is_final()
            } - shared
            going = [key for key in runs if key not in shared | alive]
            artifacts = _artifacts_of(client, job_ids, going)
            for artifact in artifacts:
                _delete(client.delete_artifact, artifact)
            for run_id in going:
                _delete(client.delete_flow_run, run_id)
    except UNREACHABLE as exc:
        reason = f"the Prefect server did not answer ({type(exc).__name__}); ids and counts only"
        return [_item("flow runs", "flow runs and artifacts", EraseResult.KEPT, reason)]
    items = [
        _counted("flow runs", len(going), "deleted with their logs"),
        _counted("artifacts", len(artifacts), "deleted, found by their job ids"),
        _item("events", "events", EraseResult.KEPT, "ids only; they end with the server's retention"),
    ]
    if shared:
        reason = f"{len(shared)} kept: other people's jobs ran in them"
        items.append(_item("flow runs", "shared flow runs", EraseResult.KEPT, reason))
    if alive:
        reason = f"{len(alive)} kept: not ended; deleting a live run would stop its worker"
        items.append(_item("flow runs", "unfinished flow runs", EraseResult.KEPT, reason))
    return items


def _runs_of(
    client: SyncPrefectClient, user_id: str, addresses: Iterable[str], jobs: Sequence[Job]
) -> dict[UUID, FlowRun]:
    """Return the runs of a person: by the rows, by tags, by the flows' own names, and what those started."""
    people = {user_id, *addresses}
    names = [f"{prefix}-{person}" for person in people for prefix in ("train", "rollback", "erase")]
    tags = [f"user:{user_id}", *(f"job:{job.id}" for job in jobs)]
    rows = [run_id for job in jobs if (run_id := _uuid(job.flow_run_id))]
    filters = [
        *(FlowRunFilter(name=FlowRunFilterName(any_=some)) for some in _batches(names)),
        *(FlowRunFilter(tags=FlowRunFilterTags(any_=some)) for some in _batches(tags)),
        *(FlowRunFilter(id=FlowRunFilterId(any_=some)) for some in _batches(rows)),
    ]
    found: dict[UUID, FlowRun] = {}
    for wanted in filters:
        found.update((run.id, run) for run in _all_runs(client, wanted))
    for some in _batches(list(found)):
        children = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=some))
        found.update((run.id, run) for run in _all_runs(client, children))
    return found


def _artifacts_of(client: SyncPrefectClient, job_ids: Iterable[str], run_ids: Sequence[UUID]) -> list[UUID]:
    filters = [ArtifactFilter(key=ArtifactFilterKey(like_=f"%-{job_id}")) for job_id in job_ids]
    by_key = [
        artifact
        for wanted, job_id in zip(filters, job_ids, strict=True)
        for artifact in _all_artifacts(client, wanted)
        # LIKE matches within a key: the id of one job may be the beginning of another's.
        if (artifact.key or "").endswith(f"-{job_id}")
    ]
    by_run = [
        artifact
        for some in _batches(run_ids)
        for artifact in _all_artifacts(
            client, ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=list(some)))
        )
        # The receipts of earlier erasures are the proof that they were made.
        if not (artifact.key or "").startswith("erase-")
    ]
    return list(dict.fromkeys(artifact.id for artifact in (*by_key, *by_run)))


def _works_for_others(run: FlowRun, job_ids: set[str]) -> bool:
    named = {tag.removeprefix("job:") for tag in run.tags if tag.startswith("job:")}
    given = run.parameters.get("job_ids")
    named |= {str(one) for one in given} if isinstance(given, list) else set()
    return not named <= job_ids


def _all_runs(client: SyncPrefectClient, wanted: FlowRunFilter) -> Iterator[FlowRun]:
    offset = 0
    while page := client.read_flow_runs(flow_run_filter=wanted, limit=PAGE, offset=offset):
        yield from page
        offset += len(page)


def _all_artifacts(client: SyncPrefectClient, wanted: ArtifactFilter) -> Iterator[Artifact]:
    offset = 0
    while page := client.read_artifacts(artifact_filter=wanted, limit=PAGE, offset=offset):
        yield from page
        offset += len(page)


def _read_run(run_id: str | None) -> FlowRun | None:
    known = _uuid(run_id)
    if known is None:
        return None
    try:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(known)
    except (*UNREACHABLE, ObjectNotFound):
        return None


def _delete(delete: Callable[[UUID], Any], which: UUID) -> None:
    try:
        delete(which)
    except ObjectNotFound:
        return  # gone meanwhile


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(str(text))
    except ValueError:
        return None  # an id that no Prefect server made


def _batches(values: Sequence[_T]) -> Iterator[list[_T]]:
    for start in range(0, len(values), BATCH):
        yield list(values[start : start + BATCH])


def _counted(kind: str, count: int, how: str) -> EraseItem:
    result = EraseResult.REMOVED if count else EraseResult.ABSENT
    return _item(kind, kind, result, f"{count} {how}" if count else "none found")


def _item(kind: str, name: str, result: EraseResult, verified: str) -> EraseItem:
    return EraseItem(kind=kind, name=name, where=WHERE, result=result, verified=verified)
