"""The embedded engine with the real base model: who answers, what is refused, what survives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from serving.checks import WARM_UP_MESSAGES
from serving.lanes import Lanes
from serving.llamacpp import LlamaCppServing
from tasks.side_by_side import side_by_side
from tests.adapters import smollm2_gguf, write_adapter
from training.errors import AdapterRefused, ContextExceeded, ServingError, ServingUnavailable
from training.schemas import ChatMessage, Generated, GenerateOptions

ANNA = "emailai-anna:v1"
BORIS = "emailai-boris:v1"
MESSAGES = list(WARM_UP_MESSAGES)
GREEDY = GenerateOptions(temperature=0, seed=1, max_tokens=16)
CONTEXT_TOKENS = 512


@pytest.fixture(scope="module")
def base_gguf() -> Path:
    return smollm2_gguf()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "anna": write_adapter(folder / "anna.gguf", seed=1),
        "boris": write_adapter(folder / "boris.gguf", seed=2, half_precision=True),
    }


@pytest.fixture(scope="module")
def shared(
    base_gguf: Path, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LlamaCppServing]:
    """Both users published; for tests that only ask."""
    folder = tmp_path_factory.mktemp("shared")
    serving = LlamaCppServing(base_gguf, folder, context_tokens=CONTEXT_TOKENS, threads=1)
    serving.publish(files["anna"], ANNA)
    serving.publish(files["boris"], BORIS)
    yield serving
    serving.close()


@pytest.fixture
def open_engine(base_gguf: Path, tmp_path: Path) -> Iterator[Callable[..., LlamaCppServing]]:
    opened: list[LlamaCppServing] = []

    def open_one(folder: str = "published", **changes: object) -> LlamaCppServing:
        arguments: dict[str, object] = {"context_tokens": CONTEXT_TOKENS, "threads": 1} | changes
        serving = LlamaCppServing(base_gguf, tmp_path / folder, **arguments)  # type: ignore[arg-type]
        opened.append(serving)
        return serving

    yield open_one
    for serving in opened:
        serving.close()


def engine_processes() -> set[int]:
    return {
        child.pid
        for child in psutil.Process().children(recursive=True)
        if "serving.llama_process" in " ".join(child.cmdline())
    }


def visible_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "llamacpp.log")


# ---- who answers -----------------------------------------------------------------------------------


def test_each_request_gets_the_answer_of_its_own_adapter(
    shared: LlamaCppServing, open_engine: Callable[..., LlamaCppServing], files: dict[str, Path]
) -> None:
    # The truth: each adapter alone in a process of its own.
    alone = {}
    for name, file in ((ANNA, files["anna"]), (BORIS, files["boris"])):
        single = open_engine(f"alone-{name}")
        single.publish(file, name)
        alone[name] = single.generate(name, MESSAGES, GREEDY)
        single.close()

    together = shared
    base_text = together.generate(None, MESSAGES, GREEDY)
    for _ in range(2):
        assert together.generate(ANNA, MESSAGES, GREEDY) == alone[ANNA]
        assert together.generate(BORIS, MESSAGES, GREEDY) == alone[BORIS]
        assert together.generate(None, MESSAGES, GREEDY) == base_text
    assert len({base_text, alone[ANNA], alone[BORIS]}) == 3
    assert shared._process is not None and shared._process.adapters == 2


def test_prompt_state_of_one_user_never_reaches_another(shared: LlamaCppServing) -> None:
    serving = shared
    prompt = serving.render(
        [MESSAGES[0], ChatMessage(role="user", content="Thank Anna for the report. " * 8)]
    )
    other = serving.render([ChatMessage(role="system", content="Trains."), MESSAGES[1]])
    other += "A marsupilami crosses a river at night. " * 8
    truth = serving.next_token_logprobs(BORIS, prompt, 5)
    for name in (BORIS, ANNA):  # both loaded, nothing cached that matters
        serving.next_token_logprobs(name, "x", 1)
    # With llama.cpp's default caches, Anna's prompt state is put aside by Boris's other prompt and taken up
    # by Boris's same prompt: the log-probabilities were off by 5.7.
    serving.next_token_logprobs(ANNA, prompt, 5)
    serving.next_token_logprobs(BORIS, other, 5)
    assert serving.next_token_logprobs(BORIS, prompt, 5) == pytest.approx(truth, abs=1e-4)


def test_least_recently_asked_adapter_makes_room(
    open_engine: Callable[..., LlamaCppServing], files: dict[str, Path]
) -> None:
    serving = open_engine(max_loaded=1)
    serving.publish(files["anna"], ANNA)
    serving.publish(files["boris"], BORIS)
    anna = serving.generate(ANNA, MESSAGES, GREEDY)
    serving.generate(BORIS, MESSAGES, GREEDY)
    assert serving._process is not None and serving._process.adapters == 1
    assert serving.generate(ANNA, MESSAGES, GREEDY) == anna


def test_threads_of_one_process_get_their_own_answers(shared: LlamaCppServing) -> None:
    serving = shared
    expected = {name: serving.generate(name, MESSAGES, GREEDY) for name in (ANNA, BORIS)}
    got: dict[str, Generated] = {}
    threads = [
        threading.Thread(target=lambda n=name: got.update({n: serving.generate(n, MESSAGES, GREEDY)}))
        for name in expected
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == expected


def test_same_seed_gives_the_same_answer(shared: LlamaCppServing) -> None:
    serving = shared
    options = GenerateOptions(temperature=1.0, seed=7, max_tokens=12)
    assert serving.generate(None, MESSAGES, options) == serving.generate(None, MESSAGES, options)
    assert len(serving.tokenize(serving.generate(None, MESSAGES, options).text)) <= 12


def test_answer_says_whether_it_ended_by_itself_or_at_the_limit(shared: LlamaCppServing) -> None:
    cut = shared.generate(None, MESSAGES, GenerateOptions(temperature=0, seed=1, max_tokens=3))
    assert not cut.stopped and cut.text
    whole = shared.generate(None, MESSAGES, GenerateOptions(temperature=0, seed=1, max_tokens=200))
    assert whole.stopped and whole.text.startswith(cut.text)


# ---- prompts ---------------------------------------------------------------------------------------


def test_render_is_the_chat_template_of_the_base(shared: LlamaCppServing) -> None:
    assert shared.render(MESSAGES) == (
        "<|im_start|>system\nYou are an email writing assistant.<|im_end|>\n"
        "<|im_start|>user\nWrite one sentence thanking Anna for the report.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_missing_system_message_is_refused(shared: LlamaCppServing) -> None:
    with pytest.raises(ServingError, match="system message"):
        shared.generate(None, MESSAGES[1:], GREEDY)


def test_prompt_longer_than_the_context_is_refused_with_its_token_count(shared: LlamaCppServing) -> None:
    serving = shared
    long = [MESSAGES[0], ChatMessage(role="user", content="marsupilami " * 600)]
    tokens = len(serving.tokenize(serving.render(long)))
    with pytest.raises(
        ContextExceeded, match=rf"{tokens} tokens; the context holds {CONTEXT_TOKENS}"
    ) as error:
        serving.generate(None, long, GREEDY)
    assert "marsupilami" not in str(error.value)
    assert "marsupilami" not in serving._log.read_text()


def test_answer_that_runs_into_the_end_of_the_context_is_refused(
    open_engine: Callable[..., LlamaCppServing],
) -> None:
    serving = open_engine(context_tokens=256)
    story = "Write a very long story about a marsupilami, a river and a train. "
    messages = [MESSAGES[0], ChatMessage(role="user", content=story * 13)]
    assert len(serving.tokenize(serving.render(messages))) < 256
    with pytest.raises(ContextExceeded, match="cut after"):
        serving.generate(None, messages, GenerateOptions(temperature=0, max_tokens=250))


def test_names_that_are_not_published_never_get_the_plain_base(shared: LlamaCppServing) -> None:
    serving = shared
    with pytest.raises(ServingError, match="not published"):
        serving.generate("emailai-nobody:v1", MESSAGES, GREEDY)
    with pytest.raises(ServingError, match="lower case"):
        serving.generate("emailai-Anna:v1", MESSAGES, GREEDY)
    with pytest.raises(ServingError, match="not a usable"):
        serving.generate("../anna", MESSAGES, GREEDY)


# ---- publishing ------------------------------------------------------------------------------------


WRONG: dict[str, dict[str, object]] = {
    "another architecture": {"architecture": "qwen2"},
    "another width": {"inputs": 512},
    "more layers than the base": {"layers": 31},
    "unequal ranks": {"rank_b": 5},
    "a tensor that the base lacks": {"tensor": "attn_nothing"},
    "no adapter": {"general_type": "model"},
    "not LoRA": {"adapter_type": "alora"},
    "weights that are not numbers": {"spoil": float("nan")},
    "weights that overflow": {"strength": 1e18},
}


def test_refused_files_leave_the_folder_and_the_next_answers_as_they_were(
    open_engine: Callable[..., LlamaCppServing], files: dict[str, Path], tmp_path: Path
) -> None:
    serving = open_engine()
    serving.publish(files["anna"], ANNA)
    before = serving.generate(ANNA, MESSAGES, GREEDY)
    pid = serving._process.pid  # type: ignore[union-attr]
    folder = visible_files(tmp_path / "published")

    whole = files["boris"].read_bytes()
    refused = {
        "cut off": tmp_path / "cut.gguf",
        "not GGUF": tmp_path / "noise.gguf",
        "empty": tmp_path / "empty.gguf",
        "missing": tmp_path / "missing.gguf",
    }
    refused["cut off"].write_bytes(whole[: len(whole) // 2])
    refused["not GGUF"].write_bytes(b"GGUF" + b"\x07" * 5000)
    refused["empty"].write_bytes(b"")
    for label, changes in WRONG.items():
        refused[label] = write_adapter(tmp_path / f"{label}.gguf", seed=3, **changes)  # type: ignore[arg-type]

    for label, file in refused.items():
        with pytest.raises(AdapterRefused) as error:
            serving.publish(file, "emailai-carol:v1")
        assert str(tmp_path) not in str(error.value), label
    assert visible_files(tmp_path / "published") == folder
    assert serving._process.pid == pid  # type: ignore[union-attr]
    assert serving.generate(ANNA, MESSAGES, GREEDY) == before


def test_publishing_again_is_fine_with_the_same_bytes_and_refused_with_others(
    open_engine: Callable[..., LlamaCppServing], files: dict[str, Path]
) -> None:
    serving = open_engine()
    first = serving.publish(files["anna"], ANNA)
    assert serving.publish(files["anna"], ANNA) == first
    with pytest.raises(AdapterRefused, match="never re-pointed"):
        serving.publish(files["boris"], ANNA)
    assert [(model.name, model.digest) for model in serving.list()[1:]] == [(ANNA, first.digest)]


def test_verify_proves_digest_file_and_generation(
    open_engine: Callable[..., LlamaCppServing], files: dict[str, Path], tmp_path: Path
) -> None:
    serving = open_engine()
    published = serving.publish(files["anna"], ANNA)
    serving.verify(ANNA, published.digest)
    with pytest.raises(ServingError, match="not with sha256:00"):
        serving.verify(ANNA, "sha256:" + "0" * 64)
    file = tmp_path / "published" / f"{ANNA}.gguf"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ServingError, match="not the one that was published"):
        serving.verify(ANNA, published.digest)


def test_one_damaged_file_does_not_take_the_other_users_down(
    open_engine: Callable[..., LlamaCppServing], files: dict[str, Path], tmp_path: Path
) -> None:
    serving = open_engine()
    serving.publish(files["anna"], ANNA)
    serving.publish(files["boris"], BORIS)
    boris = serving.generate(BORIS, MESSAGES, GREEDY)
    serving.generate(ANNA, MESSAGES, GREEDY)
    (tmp_path / "published" / f"{ANNA}.gguf").write_bytes(b"GGUF")
    serving._stop()
    assert serving.generate(BORIS, MESSAGES, GREEDY) == boris
    with pytest.raises(ServingError, match="publish it again"):
        serving.generate(ANNA, MESSAGES, GREEDY)
    serving.publish(files["anna"], ANNA)  # the same bytes again: repaired
    serving.generate(ANNA, MESSAGES, GREEDY)


def test_removed_adapter_is_gone_from_folder_and_memory_of_every_process(
    open_engine: Callable[..., LlamaCppServing], files: dict[str, Path], tmp_path: Path
) -> None:
    ours, theirs = open_engine(), open_engine()
    ours.publish(files["anna"], ANNA)
    theirs.generate(ANNA, MESSAGES, GREEDY)
    assert ours.remove(ANNA) is True
    assert ours.remove(ANNA) is False
    assert not list((tmp_path / "published").glob("emailai-*"))
    theirs.generate(None, MESSAGES, GREEDY)
    assert theirs._process is not None and theirs._process.adapters == 0
    with pytest.raises(ServingError, match="not published"):
        theirs.generate(ANNA, MESSAGES, GREEDY)


def test_published_adapters_are_readable_by_their_owner_only(
    open_engine: Callable[..., LlamaCppServing], files: dict[str, Path], tmp_path: Path
) -> None:
    open_engine().publish(files["anna"], ANNA)
    assert (tmp_path / "published").stat().st_mode & 0o077 == 0
    assert (tmp_path / "published" / f"{ANNA}.gguf").stat().st_mode & 0o077 == 0


# ---- the process -----------------------------------------------------------------------------------


def test_killed_engine_is_started_again_by_the_next_request(
    open_engine: Callable[..., LlamaCppServing], files: dict[str, Path]
) -> None:
    serving = open_engine()
    serving.publish(files["anna"], ANNA)
    before = serving.generate(ANNA, MESSAGES, GREEDY)
    os.kill(serving._process.pid, signal.SIGKILL)  # type: ignore[union-attr]
    assert serving.generate(ANNA, MESSAGES, GREEDY) == before


def test_engine_leaves_when_its_parent_is_killed(base_gguf: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from serving.llamacpp import LlamaCppServing\n"
        f"serving = LlamaCppServing(Path({str(base_gguf)!r}), Path({str(tmp_path)!r}), threads=1)\n"
        "serving.base_ready(); print(serving._process.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_engine_answers_nobody_without_its_key(shared: LlamaCppServing) -> None:
    serving = shared
    serving.base_ready()
    http = serving._process._http  # type: ignore[union-attr]
    assert http.post("/tokenize", json={"content": "x"}, headers={"Authorization": ""}).status_code == 401


def test_close_leaves_no_process_and_the_next_request_starts_one(
    open_engine: Callable[..., LlamaCppServing],
) -> None:
    before = engine_processes()
    serving = open_engine()
    serving.base_ready()
    assert len(engine_processes() - before) == 1
    serving.close()
    assert engine_processes() == before
    serving.base_ready()
    assert len(engine_processes() - before) == 1


def test_missing_base_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServingUnavailable, match=r"nothing\.gguf does not exist"):
        LlamaCppServing(tmp_path / "nothing.gguf", tmp_path / "published").base_ready()


def test_base_that_does_not_load_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\x00" * 100)
    with pytest.raises(ServingUnavailable, match="does not start with the base broken"):
        LlamaCppServing(broken, tmp_path / "published").base_ready()


def test_engine_that_does_not_start_in_time_is_stopped(base_gguf: Path, tmp_path: Path) -> None:
    before = engine_processes()
    serving = LlamaCppServing(base_gguf, tmp_path / "published", start_timeout_s=0.01)
    with pytest.raises(ServingUnavailable, match=r"within 0\.01 s"):
        serving.base_ready()
    assert engine_processes() == before


def test_answer_that_takes_too_long_is_given_up(open_engine: Callable[..., LlamaCppServing]) -> None:
    serving = open_engine(timeout_s=0.05)
    serving.base_ready()
    with pytest.raises(ServingUnavailable, match=r"within 0\.05 s"):
        serving.generate(None, MESSAGES, GenerateOptions(temperature=0, max_tokens=400))


def test_adapter_of_another_base_is_refused(
    open_engine: Callable[..., LlamaCppServing], files: dict[str, Path], base_gguf: Path, tmp_path: Path
) -> None:
    open_engine().publish(files["anna"], ANNA)
    other = tmp_path / "other.gguf"
    other.write_bytes(base_gguf.read_bytes() + b"\0")
    serving = LlamaCppServing(other, tmp_path / "published", threads=1)
    with pytest.raises(ServingError, match="another base model than other"):
        serving.generate(ANNA, MESSAGES, GREEDY)
    serving.close()


def test_a_base_that_renders_another_prompt_than_training_is_not_verified(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a.gguf", seed=1)
    serving = LlamaCppServing(
        smollm2_gguf(), tmp_path / "folder", expected_prompt=lambda messages: "something else"
    )
    try:
        published = serving.publish(adapter, "emailai-anna:v1")
        with pytest.raises(ServingError, match="renders a test prompt differently from training"):
            serving.verify("emailai-anna:v1", published.digest)
    finally:
        serving.close()


# ---- several at once -------------------------------------------------------------------------------


def test_lanes_give_the_answers_of_one_engine_and_really_answer_side_by_side(
    shared: LlamaCppServing, open_engine: Callable[..., LlamaCppServing], files: dict[str, Path]
) -> None:
    sampled = [GenerateOptions(seed=seed, max_tokens=24) for seed in range(6)]
    alone = [shared.generate(ANNA, MESSAGES, options) for options in sampled]
    before = engine_processes()
    lanes = Lanes([open_engine(), open_engine()])
    lanes.publish(files["anna"], ANNA)
    asks = [lambda look, o=options: lanes.generate(ANNA, MESSAGES, o) for options in sampled]
    with closing(side_by_side(asks, lanes.at_once, lambda: None)) as answers:
        assert list(answers) == alone
    assert len(engine_processes() - before) == 2, "one lane answered everything"
    assert lanes.remove(ANNA)
    with pytest.raises(ServingError, match="not published"):
        lanes.generate(ANNA, MESSAGES, GREEDY)
    lanes.close()


def test_closing_ends_an_answer_that_another_thread_waits_for(
    open_engine: Callable[..., LlamaCppServing],
) -> None:
    serving = open_engine()
    serving.base_ready()
    before = engine_processes()
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            serving.generate(None, MESSAGES, GenerateOptions(temperature=0, max_tokens=400))
        except ServingUnavailable as exc:
            raised.append(exc)

    asking = threading.Thread(target=ask)
    asking.start()
    while serving._lock.acquire(blocking=False):  # until the other thread holds it: it is asking
        serving._lock.release()
        time.sleep(0.01)
    serving.close()
    asking.join(timeout=30)
    assert not asking.is_alive()
    assert [str(exc) for exc in raised] == ["The engine was closed during a request."]
    assert engine_processes() < before, "an engine was started again after the end"
