"""Where tasks fetch their tools: settings, the database, the serving engine, the job folder.

Opened per process and only when asked for, so that a GPU machine, which asks for no database, needs none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

from tasks.job_folder import JobFolder
from training.base_models import find_base_model
from training.errors import OwnvoiceError, ServingUnavailable, StoreUnavailable
from training.schemas import ChatMessage
from training.settings import Settings, load_settings

if TYPE_CHECKING:
    from serving.base import Serving
    from store.database import Database


@lru_cache(maxsize=1)
def settings() -> Settings:
    return load_settings()


@lru_cache(maxsize=1)
def database() -> Database:
    """Return this process's database; the embedded server is started when no DATABASE_URL is set.

    A server that is away is waited for (OWNVOICE_DATABASE_WAIT_S), now and at every later call: a restart
    must cost a job a pause. Raises StoreUnavailable after that.
    """
    from store import embedded
    from store.database import open_database

    url, wait_s = settings().database_url, settings().database_wait_s
    until = time.monotonic() + wait_s
    while True:
        try:
            return open_database(
                url.get_secret_value() if url else embedded.start(settings().home),
                sent_column=settings().sent_column,
                wait_s=wait_s,
            )
        except StoreUnavailable:
            if time.monotonic() > until:
                raise
            time.sleep(1)


def job_folder(job_id: str) -> JobFolder:
    return JobFolder(settings().storage, job_id)


@contextmanager
def serving(
    base_model: str,
    expected_prompt: Callable[[list[ChatMessage]], str] | None = None,
    *,
    many: bool = False,
) -> Iterator[Serving]:
    """Open the configured serving engine for one base model, and close it again.

    `expected_prompt` renders messages as training did; engines compare their server with it. `many`: for
    many questions, which may be asked side by side (tasks/side_by_side.py).
    """
    from serving.engines import open_serving

    engine = open_serving(
        **settings().serving_options(find_base_model(base_model)),
        expected_prompt=expected_prompt,
        many=many,
    )
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def changing_models(timeout_s: float = 600.0) -> Iterator[None]:
    """Be the only one that creates or deletes models on the Ollama server, across processes.

    Its manifests are not written atomically (see serving/ollama.py). Nothing to wait for on the embedded
    engine. Raises ServingUnavailable when the turn does not come within `timeout_s`.
    """
    import httpx
    from prefect.concurrency.sync import concurrency
    from prefect.exceptions import PrefectHTTPStatusError

    limit = settings().serving_limit
    if limit is None:
        yield
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(concurrency(limit, timeout_seconds=timeout_s))
        except TimeoutError as exc:
            raise ServingUnavailable(
                f"Others have been changing models on the Ollama server for {timeout_s:.0f} s. Try again."
            ) from exc
        except (httpx.HTTPError, PrefectHTTPStatusError) as exc:
            raise ServingUnavailable(
                "The Prefect server, which keeps the turns of those who change models on the Ollama server, "
                f"does not answer ({type(exc).__name__}). Start it and try again."
            ) from exc
        yield


@contextmanager
def without_mail_text(what: str) -> Iterator[None]:
    """Let our own errors pass and replace any other by its type's name.

    Prefect keeps the text of every exception; the text of a parser's or a validator's may quote mail.
    """
    try:
        yield
    except OwnvoiceError:
        raise
    except Exception as exc:
        raise OwnvoiceError(
            f"{what} stopped on an unexpected {type(exc).__name__}. "
            "Its details are kept out of logs because they may quote mail; retry the job, and report it if "
            "it stays."
        ) from None
