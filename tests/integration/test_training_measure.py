"""What the gate decides by, from the GPU side: every arm on every kind of mail, from the adapters' files."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from tests.bases import persona_mails, tiny_base, tiny_examples
from training.config import LoraConfig, TrainConfig
from training.dataset import encode
from training.errors import AdapterRefused, TrainingCancelled
from training.evaluate import losses_of_saved_adapter
from training.loaded_base import LoadedBase
from training.lora import train_adapter
from training.measure import PERSONA_SAMPLE, TRAIN_SAMPLE, choose_mail, measure_losses, spread_evenly
from training.panel_file import PanelMember
from training.plan import plan_epochs, split_validation
from training.schemas import MailLoss, MeasuredLosses, TrainingResult
from training.start_adapter import WEIGHTS_FILE

TINY = TrainConfig(
    precision="fp32",
    epochs=2,
    batch_tokens=64,
    learning_rate=5e-3,
    max_seq_tokens=512,
    lora=LoraConfig(rank=4, alpha=8, dropout=0),
)
TRAIN = tiny_examples(100)
HELD_OUT, OLD = tiny_examples(7, seed=9), tiny_examples(3, seed=11)
PANEL = (
    PanelMember("kit", (), tuple(persona_mails(12))),
    PanelMember("ludo", (), tuple(persona_mails(4, first=40))),
)


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return tiny_base()


@pytest.fixture(scope="module")
def result(base: LoadedBase, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return train_adapter(TINY, TRAIN, base, tmp_path_factory.mktemp("candidate"))


@pytest.fixture(scope="module")
def other(base: LoadedBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    return Path(train_adapter(TINY, tiny_examples(20, seed=5), base, folder).adapter_dir)


def measured(
    base: LoadedBase, result: TrainingResult, *, current: Path | None = None, kit: Path | None = None
) -> tuple[MeasuredLosses, list[str]]:
    mail = choose_mail(
        base, TINY, train=TRAIN, held_out=HELD_OUT, old=OLD, personas=PANEL, kept_step=result.best_step
    )
    said: list[str] = []
    losses = measure_losses(
        base,
        mail,
        64,
        candidate=Path(result.adapter_dir),
        current=current,
        references={"kit": kit} if kit else {},
        on_unreadable=lambda what, reason: said.append(f"{what}: {reason}"),
    )
    return losses, said


def ids(losses: tuple[MailLoss, ...]) -> list[str]:
    return [loss.example_id for loss in losses]


def test_base_and_candidate_are_measured_on_everything(base: LoadedBase, result: TrainingResult) -> None:
    losses, _ = measured(base, result)
    for arm in (losses.base, losses.candidate):
        assert ids(arm.held_out) == [e.id for e in HELD_OUT]
        assert ids(arm.old) == [e.id for e in OLD]
        assert len(arm.train) == TRAIN_SAMPLE
        assert ids(arm.neutral) == ids(arm.swapped) and len(arm.neutral) == 10
        assert len(arm.personas) == PERSONA_SAMPLE + 4
        assert all(math.isfinite(loss.nll) for part in vars(arm).values() for loss in part if loss.tokens)
    assert ids(losses.base.train) == ids(losses.candidate.train)
    assert losses.candidate.train != losses.base.train
    assert losses.current is None and losses.references == {}
    assert MeasuredLosses.model_validate(losses.to_json_dict()) == losses


def test_the_training_sample_holds_no_mail_that_was_only_looked_at(
    base: LoadedBase, result: TrainingResult
) -> None:
    split = split_validation(TRAIN, TINY)
    assert len(split.validation) >= 10
    losses, _ = measured(base, result)
    assert set(ids(losses.base.train)) <= {e.id for e in split.train}


def test_the_training_sample_ends_where_the_kept_weights_do(base: LoadedBase) -> None:
    mail = choose_mail(base, TINY, train=TRAIN, held_out=HELD_OUT, old=(), personas=(), kept_step=2)
    train = split_validation(TRAIN, TINY).train
    first_two = {index for batch in plan_epochs(train, TINY)[0][:2] for index in batch}
    assert {e.id for e in mail.train} == {train[index].id for index in first_two}
    assert 0 < len(mail.train) < 20


def test_the_adapter_in_use_and_references_measure_as_they_do_alone(
    base: LoadedBase, result: TrainingResult, other: Path
) -> None:
    losses, said = measured(base, result, current=other, kit=other)
    assert losses.current is not None and said == []
    assert list(losses.current.held_out) == losses_of_saved_adapter(other, base, HELD_OUT, 64)
    assert list(losses.current.old) == losses_of_saved_adapter(other, base, OLD, 64)
    assert (losses.current.train, losses.current.neutral, losses.current.personas) == ((), (), ())
    assert losses.current.swapped == ()
    assert losses.references == {"kit": losses.current.held_out}
    assert losses.current.held_out != losses.candidate.held_out
    assert not hasattr(base.model, "peft_config"), "the base is left as it was"


def test_equal_adapters_measure_equal(base: LoadedBase, result: TrainingResult) -> None:
    losses, _ = measured(base, result, current=Path(result.adapter_dir))
    assert losses.current is not None
    assert losses.current.held_out == losses.candidate.held_out
    assert losses.current.old == losses.candidate.old


def test_torn_adapters_are_not_measured_and_a_torn_candidate_is_refused(
    base: LoadedBase, result: TrainingResult, other: Path, tmp_path: Path
) -> None:
    torn = shutil.copytree(other, tmp_path / "torn")
    (torn / WEIGHTS_FILE).write_bytes(b"torn")
    losses, said = measured(base, result, current=torn, kit=torn)
    assert losses.current is None and losses.references == {}
    assert [line.split(":")[0] for line in said] == ["the adapter in use", "the reference adapter kit"]
    with pytest.raises(AdapterRefused):
        measured(base, result.model_copy(update={"adapter_dir": str(torn)}))
    assert not hasattr(base.model, "peft_config")


def test_a_cancel_ends_the_measuring_and_gives_the_base_back(
    base: LoadedBase, result: TrainingResult
) -> None:
    looks: list[int] = []

    def stop_at_third() -> None:
        looks.append(1)
        if len(looks) == 3:
            raise TrainingCancelled("stop")

    mail = choose_mail(base, TINY, train=TRAIN, held_out=HELD_OUT, old=(), personas=(), kept_step=1)
    with pytest.raises(TrainingCancelled):
        measure_losses(base, mail, 64, candidate=Path(result.adapter_dir), before_each_batch=stop_at_third)
    assert len(looks) == 3 and not hasattr(base.model, "peft_config")


def test_personas_are_asked_in_the_words_of_their_own_mail(base: LoadedBase) -> None:
    mail = choose_mail(base, TINY, train=TRAIN, held_out=HELD_OUT, old=(), personas=PANEL[1:], kept_step=1)
    assert mail.personas == tuple(encode(e, base.tokenizer, 512) for e in PANEL[1].held_out)


@pytest.mark.parametrize(
    ("size", "count", "expected"),
    [(3, 5, [0, 1, 2]), (5, 5, [0, 1, 2, 3, 4]), (10, 2, [2, 7]), (9, 3, [1, 4, 7]), (0, 3, [])],
)
def test_an_even_sample_takes_the_middle_of_each_part(size: int, count: int, expected: list[int]) -> None:
    assert list(spread_evenly(range(size), count)) == expected
