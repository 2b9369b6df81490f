"""All losses that the gate decides by: every arm on every kind of mail it is asked about.

The GPU side's half of the evidence. Adapters are measured from their files, as anybody will load them: base
and candidate on everything, the adapter in use on the person's mail, reference adapters on the person's
held-out mail. (references/voice.md §3)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from training.config import TrainConfig
from training.dataset import EncodedExample, encode
from training.errors import AdapterRefused
from training.evaluate import held_out_losses, saved_adapter
from training.loaded_base import LoadedBase
from training.neutral_tasks import neutral_examples, swapped_examples
from training.panel_file import PanelMember
from training.plan import trained_on
from training.schemas import ArmLosses, Example, MailLoss, MeasuredLosses

if TYPE_CHECKING:
    from peft import PeftModel

TRAIN_SAMPLE = 60
"""Training mails that overfitting and membership are measured on: as many as are held out at most."""
PERSONA_SAMPLE = 10
"""Held-out mails of each persona."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class MeasuredMail:
    """What is measured on, by the names of `ArmLosses`."""

    held_out: tuple[EncodedExample, ...]
    old: tuple[EncodedExample, ...] = ()
    train: tuple[EncodedExample, ...] = ()
    neutral: tuple[EncodedExample, ...] = ()
    swapped: tuple[EncodedExample, ...] = ()
    personas: tuple[EncodedExample, ...] = ()


def choose_mail(
    base: LoadedBase,
    config: TrainConfig,
    *,
    train: Sequence[EncodedExample],
    held_out: Sequence[EncodedExample],
    old: Sequence[EncodedExample],
    personas: Sequence[PanelMember],
    kept_step: int,
) -> MeasuredMail:
    """Choose what to measure on. `train` is what the training was given, in its order.

    Of it an even sample of the mails that the kept weights were really trained on (`kept_step` steps), for a
    mail of the validation slice is as new to the adapter as a held-out one.
    """
    trained = trained_on(train, config, kept_step)

    def encoded(examples: Sequence[Example]) -> tuple[EncodedExample, ...]:
        return tuple(encode(e, base.tokenizer, config.max_seq_tokens) for e in examples)

    elsewhere = [e for persona in personas for e in spread_evenly(persona.held_out, PERSONA_SAMPLE)]
    return MeasuredMail(
        held_out=tuple(held_out),
        old=tuple(old),
        train=spread_evenly(trained, TRAIN_SAMPLE),
        neutral=encoded(neutral_examples()),
        swapped=encoded(swapped_examples()),
        personas=encoded(elsewhere),
    )


def measure_losses(
    base: LoadedBase,
    mail: MeasuredMail,
    batch_tokens: int,
    *,
    candidate: Path,
    current: Path | None = None,
    references: Mapping[str, Path] | None = None,
    before_each_batch: Callable[[], None] | None = None,
    on_unreadable: Callable[[str, str], None] | None = None,
) -> MeasuredLosses:
    """Measure all arms; `candidate`, `current` and `references` are folders of PEFT files.

    `before_each_batch` may raise to end it. An adapter in use or a reference that is torn is not measured:
    `on_unreadable(what, reason)`. Raises AdapterRefused when the candidate is.
    """

    def losses_of(model: PeftModel, *parts: str, adapter: bool = True) -> ArmLosses:
        # Part by part: what shares a batch changes the last digits of bf16, and equal adapters measure equal.
        return ArmLosses(
            **{
                part: tuple(
                    held_out_losses(
                        model,
                        base,
                        getattr(mail, part),
                        batch_tokens,
                        adapter=adapter,
                        before_each_batch=before_each_batch,
                    )
                )
                for part in parts
            }
        )

    with saved_adapter(candidate, base) as model:
        of_base = losses_of(model, *ArmLosses.model_fields, adapter=False)
        of_candidate = losses_of(model, *ArmLosses.model_fields)
    of_current: ArmLosses | None = None
    of_references: dict[str, tuple[MailLoss, ...]] = {}
    if current is not None:
        try:
            with saved_adapter(current, base) as model:
                of_current = losses_of(model, "held_out", "old")
        except AdapterRefused as exc:
            # A retrain is also how a lost adapter is replaced: it is judged against the base alone.
            _tell(on_unreadable, "the adapter in use", exc)
    for name, folder in (references or {}).items():
        try:
            with saved_adapter(folder, base) as model:
                of_references[name] = losses_of(model, "held_out").held_out
        except AdapterRefused as exc:
            _tell(on_unreadable, f"the reference adapter {name}", exc)
    return MeasuredLosses(base=of_base, candidate=of_candidate, current=of_current, references=of_references)


def spread_evenly(items: Sequence[Item], count: int) -> tuple[Item, ...]:
    """Return `count` items, or all when there are fewer: the middle one of each of `count` equal parts."""
    if len(items) <= count:
        return tuple(items)
    return tuple(items[(2 * part + 1) * len(items) // (2 * count)] for part in range(count))


def _tell(listener: Callable[[str, str], None] | None, what: str, reason: Exception) -> None:
    if listener is not None:
        listener(what, str(reason))
