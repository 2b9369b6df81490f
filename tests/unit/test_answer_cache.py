"""What the base answered about a person's mails: kept for the owner alone, bounded, and gone when deleted."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tasks import answer_cache
from tasks.answer_cache import AnswerCache, open_answers, remove_answers
from training.errors import StorageError
from training.schemas import Generated

ANSWER = Generated(text="Write an email to ask for the keys.", stopped=True)


def storage(tmp_path: Path) -> str:
    return (tmp_path / "storage").as_posix()


def test_an_answer_is_found_again_by_its_person_alone(tmp_path: Path) -> None:
    with open_answers(storage(tmp_path), "anna") as cache:
        cache.keep("k", ANSWER)
    assert AnswerCache(storage(tmp_path), "anna").find("k") == ANSWER
    assert AnswerCache(storage(tmp_path), "anna").find("other") is None
    assert AnswerCache(storage(tmp_path), "ann").find("k") is None


def test_nobody_else_of_the_machine_may_read_it(tmp_path: Path) -> None:
    with open_answers(storage(tmp_path), "anna") as cache:
        cache.keep("k", ANSWER)
    (file,) = (tmp_path / "storage" / "playback").iterdir()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file.parent, file)] == [0o700, 0o600]


def test_answers_of_a_job_that_was_stopped_are_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_answers(storage(tmp_path), "anna") as cache:
        cache.keep("k", ANSWER)
        raise KeyboardInterrupt
    assert len(AnswerCache(storage(tmp_path), "anna")) == 1


def test_a_crash_loses_what_came_since_the_last_save_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_cache, "SAVE_EVERY_S", 0.0)
    AnswerCache(storage(tmp_path), "anna").keep("k", ANSWER)
    assert AnswerCache(storage(tmp_path), "anna").find("k") == ANSWER


def test_the_longest_unused_answers_leave_above_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_cache, "MOST_ANSWERS", 3)
    with open_answers(storage(tmp_path), "anna") as cache:
        for key in "abc":
            cache.keep(key, ANSWER)
    with open_answers(storage(tmp_path), "anna") as cache:
        assert cache.find("a") is not None
        cache.keep("d", ANSWER)
    left = AnswerCache(storage(tmp_path), "anna")
    assert [key for key in "abcd" if left.find(key)] == ["a", "c", "d"]


def test_an_endless_answer_takes_a_bounded_place(tmp_path: Path) -> None:
    with open_answers(storage(tmp_path), "anna") as cache:
        cache.keep("k", Generated(text="x" * 10_000, stopped=False))
    found = AnswerCache(storage(tmp_path), "anna").find("k")
    assert found is not None and len(found.text) == answer_cache.MOST_CHARACTERS


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"k": 1}', '{"k": {"text": 1}}'])
def test_a_damaged_file_counts_as_empty_and_is_written_anew(tmp_path: Path, damage: str) -> None:
    with open_answers(storage(tmp_path), "anna") as cache:
        cache.keep("k", ANSWER)
    (file,) = (tmp_path / "storage" / "playback").iterdir()
    file.write_text(damage)
    with open_answers(storage(tmp_path), "anna") as cache:
        assert len(cache) == 0
        cache.keep("new", ANSWER)
    assert AnswerCache(storage(tmp_path), "anna").find("new") == ANSWER


def test_deleting_leaves_nothing_behind_not_even_half_a_file(tmp_path: Path) -> None:
    with open_answers(storage(tmp_path), "anna") as cache:
        cache.keep("k", ANSWER)
    folder = tmp_path / "storage" / "playback"
    (folder / ".anna.json.4711").write_text("left by a killed writer")
    assert remove_answers(storage(tmp_path), "anna")
    assert list(folder.iterdir()) == []
    assert not remove_answers(storage(tmp_path), "anna")


def test_storage_that_is_no_storage_is_told_without_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "storage").write_text("a file where the folder should be")
    cache = AnswerCache(storage(tmp_path), "anna")
    cache.keep("k", ANSWER)
    with pytest.raises(StorageError, match="OWNVOICE_STORAGE_URL") as error:
        cache.save()
    assert "keys" not in str(error.value)


def test_any_fsspec_storage_holds_answers() -> None:
    url = "memory://ownvoice-answers"
    with open_answers(url, "Anna B/../x") as cache:
        cache.keep("k", ANSWER)
    assert AnswerCache(url, "Anna B/../x").find("k") == ANSWER
    assert remove_answers(url, "Anna B/../x")
    assert len(AnswerCache(url, "Anna B/../x")) == 0
