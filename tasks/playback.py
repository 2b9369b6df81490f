"""Instructions by playback: asking the base about each mail, through the serving engine. CPU side.

The mails go to the engine that answers for the app (this machine's llama.cpp, or the owner's Ollama server)
and nowhere else, as many side by side as it answers at once (tasks/side_by_side.py). Prompts that go on from
a common beginning in the engine's cache took half the time, but round differently: 2 of 8 answers at
temperature 0 came out as others, and a mail's instruction must not hang on what was asked before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from typing import TypeVar

from prefect import get_run_logger

from serving.base import Serving
from store import jobs
from tasks.answer_cache import AnswerCache, open_answers
from tasks.progress import show_progress
from tasks.publish import SERVING_DELAYS
from tasks.side_by_side import LOOK_EVERY_S, Look, side_by_side
from tasks.stages import stop_if_cancelled
from tasks.tools import database, serving, settings
from training.config import TrainConfig
from training.dataset import Prepared
from training.errors import ServingError, ServingUnavailable
from training.playback import (
    PLAYBACK_OPTIONS,
    can_be_asked,
    every_example,
    playback_key,
    playback_messages,
    with_instructions,
)
from training.schemas import STAGE_PROGRESS, ChatMessage, Example, Generated, Job, Stage

T = TypeVar("T")

SPAN = STAGE_PROGRESS[Stage.TRAIN] - STAGE_PROGRESS[Stage.PREPARE] - 1
"""Percent of the job's progress that the answers fill."""
MOST_REFUSED = 5
"""Mails in a row that the engine may refuse; then it is not the mails."""


def give_instructions(job: Job, config: TrainConfig, prepared: Prepared) -> Prepared:
    """Return the data set with the instructions that `data.instructions` asks for.

    Answers are kept in the person's own cache; a job that died, and a retrain, ask for the missing ones only.
    Nothing is asked for a mailbox that is not trained on. Raises TrainingCancelled, StorageError,
    ServingError, and ServingUnavailable when the engine stays away for OWNVOICE_SERVING_WAIT_S.
    """
    if config.data.instructions == "subject" or not prepared.report.eligible:
        return prepared
    with (
        serving(job.base_model, many=True) as engine,
        open_answers(settings().storage, job.user_id) as cache,
    ):
        answers = ask_about(
            engine,
            [example for example in every_example(prepared) if can_be_asked(example)],
            cache,
            on_progress=_Progress(job.id),
            delays=SERVING_DELAYS,
        )
    done = with_instructions(prepared, answers)
    jobs.add_event(database(), job.id, done.sentence)
    get_run_logger().info("%s", done.sentence)
    report = prepared.report.model_copy(update={"instructions": done.sentence})
    return Prepared(done.prepared.train, done.prepared.held_out, report, done.prepared.old)


def ask_about(
    engine: Serving,
    examples: Iterable[Example],
    cache: AnswerCache,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    delays: Iterable[float] = (),
) -> dict[str, Generated | None]:
    """Return the base's answer for each example by its id, None where the engine refused that mail.

    `on_progress` hears after each mail how many of all are done, and may raise to stop. `delays` are the
    pauses, in seconds, after which an engine that is away is tried again; each answer begins them anew.
    Raises ServingUnavailable and ServingError.
    """
    wanted, pauses = list(examples), tuple(delays)
    base_digest = _patiently(partial(_ready, engine), pauses, partial(on_progress, 0, len(wanted)))
    messages = {example.id: playback_messages(example) for example in wanted}
    keys = {id_: playback_key(asked, base_digest) for id_, asked in messages.items()}
    answers = {id_: cache.find(key) for id_, key in keys.items()}
    missing = [id_ for id_, answer in answers.items() if answer is None]
    done, refused = len(wanted) - len(missing), 0
    asks = [partial(_ask, engine, messages[id_], pauses) for id_ in missing]
    with closing(side_by_side(asks, engine.at_once, lambda: on_progress(done, len(wanted)))) as told:
        for id_, answer in zip(missing, told, strict=True):
            done += 1
            if isinstance(answer, ServingError):
                refused += 1
                if refused == MOST_REFUSED:
                    raise answer
            else:
                refused, answers[id_] = 0, answer
                cache.keep(keys[id_], answer)
    on_progress(len(wanted), len(wanted))
    return answers


def _ready(engine: Serving) -> str:
    """Return the base's digest once it can answer."""
    engine.base_ready()
    return engine.base_digest()


def _ask(
    engine: Serving, messages: list[ChatMessage], pauses: Sequence[float], look: Look
) -> Generated | ServingError:
    """Return the base's answer, or why the engine refuses these messages."""
    try:
        return _patiently(partial(engine.generate, None, messages, PLAYBACK_OPTIONS), pauses, look)
    except ServingError as exc:
        return exc


def _patiently(call: Callable[[], T], pauses: Sequence[float], look: Look) -> T:
    """Call; try again after each of `pauses` while the engine is away. `look` may raise meanwhile to stop.

    Here and not as a retry of the task: that would read and clean the mail again.
    """
    for pause in pauses:
        try:
            return call()
        except ServingUnavailable:
            until = time.monotonic() + pause
            while (left := until - time.monotonic()) > 0:
                look()
                time.sleep(min(left, LOOK_EVERY_S))
    return call()


class _Progress:
    """Brings the answers into the job's row, and a cancel out of it."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._began = time.monotonic()
        self._looked_at = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()  # answers may come faster than the row need be asked and told
        if now - self._looked_at < LOOK_EVERY_S and done < total:
            return
        self._looked_at = now
        stop_if_cancelled(self._job_id)
        left_s = (now - self._began) / done * (total - done) if done else None
        percent = STAGE_PROGRESS[Stage.PREPARE] + SPAN * done / max(total, 1)
        row = jobs.report_progress(database(), self._job_id, round(percent, 1), eta_seconds=left_s)
        if row is not None:
            show_progress(row, f"instructions: {done} of {total} mails", now=False)
