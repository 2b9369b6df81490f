"""Reference adapters: made once per base, recipe and persona, whole or not at all, and never a job's end."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bases import persona_mails, tiny_base, tiny_base_model
from training import lora, references
from training.config import LoraConfig, TrainConfig
from training.errors import NotEnoughMemory, StorageError, TrainingCancelled, TrainingDiverged
from training.evaluate import saved_adapter
from training.loaded_base import LoadedBase
from training.panel_file import PanelMember
from training.references import COMPLETE, STALE_S, reference_adapters, reference_config
from training.schemas import TrainingProgress
from training.start_adapter import CONFIG_FILE, WEIGHTS_FILE

TINY = TrainConfig(
    precision="fp32",
    epochs=1,
    batch_tokens=1200,
    learning_rate=5e-3,
    validation_fraction=0,
    lora=LoraConfig(rank=2, alpha=4, dropout=0),
)
KIT = PanelMember("kit", tuple(persona_mails(10)), ())
LUDO = PanelMember("ludo", tuple(persona_mails(10, first=100)), ())


@pytest.fixture
def base(tmp_path: Path) -> LoadedBase:
    return base_of(tmp_path / "tiny.gguf", b"the tiny base")


def base_of(gguf: Path, content: bytes) -> LoadedBase:
    gguf.write_bytes(content)
    return replace(tiny_base(), info=tiny_base_model(gguf_file=str(gguf)))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples each training since the start of the test was given."""
    given: list[int] = []
    real = lora.train_adapter

    def counting(config: TrainConfig, examples: Any, *args: Any, **kwargs: Any) -> Any:
        given.append(len(examples))
        return real(config, examples, *args, **kwargs)

    monkeypatch.setattr(references.lora, "train_adapter", counting)
    return given


def make(
    base: LoadedBase, cache: Path, *personas: PanelMember, config: TrainConfig = TINY
) -> dict[str, Path]:
    return reference_adapters(base, personas, cache, config=config)


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE, COMPLETE)}


# ---- once --------------------------------------------------------------------------------------------


def test_adapters_are_made_once_and_found_again(base: LoadedBase, cache: Path, trained: list[int]) -> None:
    first = make(base, cache, KIT, LUDO)
    assert list(first) == ["kit", "ludo"] and trained == [10, 10]
    assert content(first["kit"])[WEIGHTS_FILE] != content(first["ludo"])[WEIGHTS_FILE]
    assert make(base, cache, LUDO, KIT) == first and list(make(base, cache, LUDO, KIT)) == ["ludo", "kit"]
    assert len(trained) == 2, "nothing was trained again"
    with saved_adapter(first["kit"], base):
        pass


@pytest.mark.parametrize("what", ["base", "recipe", "persona"])
def test_another_base_recipe_or_mailbox_is_another_adapter(
    what: str, base: LoadedBase, cache: Path, tmp_path: Path, trained: list[int]
) -> None:
    first = make(base, cache, KIT)
    if what == "base":
        other = make(base_of(tmp_path / "another.gguf", b"another base"), cache, KIT)
    elif what == "recipe":
        other = make(base, cache, KIT, config=TINY.model_copy(update={"learning_rate": 1e-3}))
    else:
        other = make(base, cache, replace(KIT, train=KIT.train[1:]))
    assert len(trained) == 2 and other["kit"] != first["kit"]
    assert make(base, cache, KIT) == first, "both are kept"


def test_what_does_not_change_an_adapter_does_not_train_it_again(
    base: LoadedBase, cache: Path, trained: list[int]
) -> None:
    make(base, cache, KIT)
    make(base, cache, KIT, config=TINY.model_copy(update={"name": "mine", "checkpoint_every_s": 5.0}))
    assert len(trained) == 1


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, COMPLETE])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b"[]"),
    ],
    ids=["lost", "cut", "another"],
)
def test_a_damaged_adapter_is_made_again(
    base: LoadedBase, cache: Path, trained: list[int], name: str, spoil: Callable[[Path], None]
) -> None:
    folder = make(base, cache, KIT)["kit"]
    before = content(folder)
    spoil(folder / name)
    assert make(base, cache, KIT)["kit"] == folder
    assert len(trained) == 2 and content(folder) == before


def test_the_shipped_recipe_trains_in_the_precision_that_the_base_is_loaded_in(base: LoadedBase) -> None:
    assert reference_config(base).precision == "fp32"
    half = reference_config(tiny_base(precision="bf16"))
    assert (half.precision, half.quantise, half.lora.rank) == ("bf16", "none", 16)


# ---- two processes, and one that dies ----------------------------------------------------------------


def test_the_second_of_two_processes_takes_what_the_first_has_put_there(
    base: LoadedBase, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lora.train_adapter
    put: list[dict[str, bytes]] = []

    def overtaken(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(references.lora, "train_adapter", real)
        (folder,) = make(tiny_twin(base), cache, KIT).values()
        put.append(content(folder))
        return real(*args, **kwargs)

    monkeypatch.setattr(references.lora, "train_adapter", overtaken)
    (folder,) = make(base, cache, KIT).values()
    assert content(folder) == put[0]
    assert [path.name for path in folder.parent.iterdir()] == ["kit"], "nothing is left aside"


def tiny_twin(base: LoadedBase) -> LoadedBase:
    return replace(tiny_base(), info=base.info)


def test_what_a_killed_process_left_is_swept_once_it_is_old(
    base: LoadedBase, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(base, cache, KIT)["kit"]
    shutil.rmtree(folder)
    left = folder.with_name(".kit.abcd")
    left.mkdir()
    make(base, cache, KIT)
    assert left.is_dir(), "another process may be at work in it"
    shutil.rmtree(folder)
    now = references.time.time()
    monkeypatch.setattr(references.time, "time", lambda: now + STALE_S + 1)
    make(base, cache, KIT)
    assert not left.exists()


# ---- cancelled, diverged -----------------------------------------------------------------------------


def test_a_cancel_ends_it_at_the_next_step_and_keeps_what_was_finished(
    base: LoadedBase, cache: Path, trained: list[int]
) -> None:
    seen: list[TrainingProgress] = []
    with pytest.raises(TrainingCancelled):
        reference_adapters(
            base,
            [KIT, LUDO],
            cache,
            config=TINY,
            on_progress=seen.append,
            should_stop=lambda: bool(seen) and seen[-1].reference == 2,
        )
    assert (seen[-1].reference, seen[-1].step) == (2, 1) and seen[-1].steps > 1
    assert not [path for path in (cache / "panel").rglob("*") if "ludo" in path.name]
    del trained[:]
    assert list(make(base, cache, KIT, LUDO)) == ["kit", "ludo"] and trained == [10]
    assert not hasattr(base.model, "peft_config")


def test_progress_says_which_of_how_many_and_counts_only_what_is_trained(
    base: LoadedBase, cache: Path
) -> None:
    make(base, cache, KIT)
    seen: list[TrainingProgress] = []
    other = replace(LUDO, name="philippa", train=LUDO.train[:5])
    reference_adapters(base, [KIT, LUDO, other], cache, config=TINY, on_progress=seen.append)
    assert {(p.phase, p.references) for p in seen} == {("panel", 2)}
    assert sorted({p.reference for p in seen}) == [1, 2]
    assert seen[-1].eta_seconds == 0 < seen[0].eta_seconds


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (TrainingDiverged("The loss is nan at step 1.", step=1, loss=float("nan")), False),
        (NotEnoughMemory("Needs 9 GB.", needed_bytes=9, free_bytes=1), True),
    ],
    ids=["diverged", "memory"],
)
def test_a_persona_that_cannot_be_trained_is_left_out_with_the_reason(
    base: LoadedBase, cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, again: bool
) -> None:
    real = lora.train_adapter
    tried: list[int] = []

    def failing(config: TrainConfig, examples: Any, *args: Any, **kwargs: Any) -> Any:
        tried.append(len(examples))
        if len(examples) == 9:
            raise error
        return real(config, examples, *args, **kwargs)

    monkeypatch.setattr(references.lora, "train_adapter", failing)
    bad = replace(LUDO, train=LUDO.train[:9])
    left_out: list[tuple[str, str]] = []
    for _ in range(2):
        found = reference_adapters(
            base, [bad, KIT], cache, config=TINY, on_left_out=lambda *said: left_out.append(said)
        )
        assert list(found) == ["kit"]
    assert left_out == [("ludo", str(error))] * 2
    # The same training would diverge before every job; memory may be there next time.
    assert tried.count(9) == (2 if again else 1)


def test_a_real_divergence_leaves_the_base_as_it_was(base: LoadedBase, cache: Path) -> None:
    weight = base.model.get_input_embeddings().weight
    before = weight.clone()
    with torch.no_grad():
        weight[:] = float("nan")
    reasons: list[str] = []
    found = reference_adapters(
        base, [KIT], cache, config=TINY, on_left_out=lambda _, why: reasons.append(why)
    )
    with torch.no_grad():
        weight.copy_(before)
    assert found == {} and "nan" in reasons[0]
    assert not hasattr(base.model, "peft_config")


def test_a_cache_that_cannot_be_written_is_named_as_the_reason(base: LoadedBase, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(StorageError, match=r"cache \(Not a directory\)"):
        make(base, cache, KIT)


def test_a_persona_without_mail_is_left_out(base: LoadedBase, cache: Path) -> None:
    reasons: list[str] = []
    empty = replace(KIT, train=())
    assert (
        reference_adapters(base, [empty], cache, config=TINY, on_left_out=lambda _, why: reasons.append(why))
        == {}
    )
    assert reasons == ["it has no training mail"]
