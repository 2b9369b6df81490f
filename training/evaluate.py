"""Held-out loss, mail by mail: how probable a model finds the replies the person really wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from training.dataset import EncodedExample
from training.export import require_whole
from training.forward import reply_hidden_states
from training.loaded_base import LoadedBase, restore_base
from training.loss import reply_log_likelihood
from training.plan import plan_epoch
from training.schemas import MailLoss
from training.speed_up import speed_up

if TYPE_CHECKING:
    from peft import PeftModel


@torch.no_grad()
def held_out_losses(
    model: PeftModel,
    base: LoadedBase,
    examples: Sequence[EncodedExample],
    batch_tokens: int,
    *,
    adapter: bool = True,
    before_each_batch: Callable[[], None] | None = None,
) -> list[MailLoss]:
    """Return nll(e) = -1/T Σ log p(y_t | x, y_<t) over the reply tokens of each example, in their order.

    `adapter=False` measures the plain base. Softmax in float32 (references/voice.md §3, metric 1).
    `before_each_batch` may raise to end it.
    """
    was_training = model.training
    model.eval()
    found: dict[int, MailLoss] = {}
    weight = base.model.get_output_embeddings().weight  # type: ignore[union-attr]
    with nullcontext() if adapter else model.disable_adapter():
        for batch in plan_epoch(examples, batch_tokens, seed=0):
            if before_each_batch is not None:
                before_each_batch()
            chosen = [examples[index] for index in batch]
            hidden, targets, rows = reply_hidden_states(model, base, chosen)
            log_likelihood = reply_log_likelihood(hidden, weight, targets)  # type: ignore[arg-type]
            for row, (index, example) in enumerate(zip(batch, chosen, strict=True)):
                own = log_likelihood[(rows == row).to(log_likelihood.device)]
                found[index] = MailLoss(
                    example_id=example.id,
                    thread_id=example.thread_id,
                    nll=float(-own.mean()) if len(own) else 0.0,
                    tokens=len(own),
                )
    model.train(was_training)
    return [found[index] for index in range(len(examples))]


@contextmanager
def saved_adapter(folder: Path, base: LoadedBase) -> Iterator[PeftModel]:
    """Lend the base with the adapter that PEFT saved in `folder`, ready to measure; the base is left as it
    was.

    Raises AdapterRefused when the files are torn.
    """
    from peft import PeftModel

    # Checked first: an adapter that fails half-way through loading would stay on the base.
    require_whole(folder)
    model = PeftModel.from_pretrained(base.model, str(folder), autocast_adapter_dtype=False)
    try:
        speed_up(model)  # the same arithmetic as in training, so that equal adapters measure equal
        yield model
    finally:
        restore_base(model, base)


def losses_of_saved_adapter(
    folder: Path, base: LoadedBase, examples: Sequence[EncodedExample], batch_tokens: int
) -> list[MailLoss]:
    """Return the held-out losses of an adapter saved by PEFT in `folder`; the base is left as it was.

    Raises AdapterRefused when the files are torn.
    """
    with saved_adapter(folder, base) as model:
        return held_out_losses(model, base, examples, batch_tokens)
