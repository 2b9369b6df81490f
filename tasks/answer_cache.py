"""What the base answered about a person's mails, kept between jobs: `<storage>/playback/<person>.json`.

It holds what mails are about and is treated as mail: the owner's file alone, bounded, deleted by erase-user.
A retrain then asks about new mail only, and a job that died goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from serving.base import voice_name
from tasks.private_file import read_private, remove_private, write_private
from training.schemas import Generated

FOLDER = "playback"
MOST_ANSWERS = 2000
"""Four trainings of 500 mails; the longest unused answers leave. At most about 1 MB."""
MOST_CHARACTERS = 600
"""Of one answer; longer ones are no instructions anyway."""
SAVE_EVERY_S = 10.0
"""Seconds of asking that a crash may lose."""


class AnswerCache:
    """One person's answers by their key (training.playback.playback_key); one job of a person is active."""

    def __init__(self, storage_url: str, user_id: str) -> None:
        """Read the file; one that is not readable as answers counts as empty. Raises StorageError."""
        self._storage_url = storage_url
        self._name = _file_of(user_id)
        self._saved_at = time.monotonic()
        self._changed = False
        # In the order of their last use: the first is dropped first.
        self._answers: dict[str, Generated] = {}
        try:
            kept = json.loads(read_private(storage_url, FOLDER, self._name) or "{}")
            self._answers = {key: Generated.model_validate(answer) for key, answer in kept.items()}
        except (ValueError, AttributeError, ValidationError):
            self._changed = True  # it is written anew

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, key: str) -> Generated | None:
        """Return a kept answer, which counts as used now."""
        answer = self._answers.pop(key, None)
        if answer is not None:
            self._answers[key] = answer
        return answer

    def keep(self, key: str, answer: Generated) -> None:
        """Keep an answer; now and then all are written. Raises StorageError."""
        self._answers[key] = answer.model_copy(update={"text": answer.text[:MOST_CHARACTERS]})
        self._changed = True
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write what is new, without the oldest above `MOST_ANSWERS`. Raises StorageError."""
        self._saved_at = time.monotonic()
        if not self._changed:
            return
        for key in list(self._answers)[: max(0, len(self._answers) - MOST_ANSWERS)]:
            del self._answers[key]
        kept = {key: answer.to_json_dict() for key, answer in self._answers.items()}
        write_private(self._storage_url, FOLDER, self._name, json.dumps(kept, ensure_ascii=False))
        self._changed = False


@contextmanager
def open_answers(storage_url: str, user_id: str) -> Iterator[AnswerCache]:
    """Yield a person's answers; they are saved at the end, a cancel or an engine that went away included."""
    cache = AnswerCache(storage_url, user_id)
    try:
        yield cache
    finally:
        cache.save()


def remove_answers(storage_url: str, user_id: str) -> bool:
    """Delete a person's answers; True when there were any. Raises StorageError."""
    return remove_private(storage_url, FOLDER, _file_of(user_id))


def _file_of(user_id: str) -> str:
    # An id of the app's may hold what a file name cannot; the serving name's form of it is safe.
    return f"{voice_name(user_id).partition('-')[2]}.json"
