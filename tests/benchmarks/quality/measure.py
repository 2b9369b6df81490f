"""The kinds of runs: each trains through the public functions of `training`, as a job does.

What a run returns is numbers only. It runs in a child process (processes.py), which keeps each base model
for its later runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tests.benchmarks.mailboxes import find_mailbox, read_sent
from tests.benchmarks.quality.ledger import Run
from training.base_models import find_base_model
from training.choose import choose
from training.config import TrainConfig
from training.dataset import EncodedExample, Prepared, encode, prepare
from training.errors import ConfigError, TrainingDiverged
from training.schemas import Example, MailLoss, TrainingResult

if TYPE_CHECKING:
    from peft import PeftModel

    from training.loaded_base import LoadedBase

BASE_MODEL = "smollm2-135m"
Losses = list[list[float]]
"""[nll, tokens] per mail: what is kept of a MailLoss; ids and threads stay out of the ledger."""


def measure(run: Run, work: Path) -> dict[str, Any]:
    """Do one run in `work` and return its result as JSON values. Raises what training raises."""
    return KINDS[run.kind](run, work)


def train_and_judge(run: Run, work: Path, *, newest: int = 0) -> dict[str, Any]:
    """Train on the mailbox's training part, or on its `newest` mails; held-out losses as a job measures
    them, in its own precision.

    A training that diverged is a result too: what a setting does.
    """
    config, base = run.config, loaded_base(run.config, work)
    prepared = prepare_mailbox(run.mailbox, config)
    held_out = encode_all(prepared.held_out, config, base)
    losses: dict[str, Losses] = {}

    def judge(model: PeftModel) -> None:
        from training.evaluate import held_out_losses

        for name, adapter in (("held_out", True), ("base", False)):
            losses[name] = numbers(
                held_out_losses(model, base, held_out, config.batch_tokens, adapter=adapter)
            )

    with TemporaryDirectory(dir=work) as out:
        try:
            result = train(config, prepared.train[-newest:], base, Path(out), after_training=judge)
        except TrainingDiverged as exc:
            return {"diverged": str(exc), "step": exc.step}
    return {**course(result), **losses}


def train_on_newest(run: Run, work: Path) -> dict[str, Any]:
    """Do the run that `run.settings["preset"]` says on the newest `run.settings["mails"]` of its mails."""
    inner = Run("adapter", run.mailbox, run.settings["preset"])
    return train_and_judge(inner, work, newest=run.settings["mails"])


def train_and_judge_in_fp32(run: Run, work: Path) -> dict[str, Any]:
    """Train in the precision of the settings; the saved adapter is judged beside a base in fp32.

    So two precisions of training are compared by one measure, in which neither has a part.
    """
    from training.evaluate import losses_of_saved_adapter

    config, base = run.config, loaded_base(run.config, work)
    judge = loaded_base(config.model_copy(update={"precision": "fp32"}), work)
    prepared = prepare_mailbox(run.mailbox, config)
    with TemporaryDirectory(dir=work) as out:
        result = train(config, prepared.train, base, Path(out))
        held_out = encode_all(prepared.held_out, config, judge)
        losses = losses_of_saved_adapter(Path(result.adapter_dir), judge, held_out, config.batch_tokens)
    return {**course(result), "held_out": numbers(losses)}


def train_and_judge_names(run: Run, work: Path) -> dict[str, Any]:
    """Train as the settings say; held-out losses of all tokens, of third persons' names, and of the rest.

    What is a name is found in the held-out mails in the same way whether the settings mask names or not.
    """
    config, base = run.config, loaded_base(run.config, work)
    masking = config.model_copy(update={"data": config.data.model_copy(update={"mask_third_persons": True})})
    held_out = encode_all(prepare_mailbox(run.mailbox, masking).held_out, config, base)
    train_examples = prepare_mailbox(run.mailbox, config).train
    losses: dict[str, Losses] = {}
    with TemporaryDirectory(dir=work) as out:
        result = train(
            config,
            train_examples,
            base,
            Path(out),
            after_training=lambda model: losses.update(_losses_by_token(model, base, held_out, config)),
        )
    masked = sum(len(e.masked) for e in encode_all(train_examples, config, base))
    return {**course(result), "masked_train_tokens": masked, **losses}


def _losses_by_token(
    model: PeftModel, base: LoadedBase, examples: Sequence[EncodedExample], config: TrainConfig
) -> dict[str, Losses]:
    """Return held-out losses of all reply tokens, of those that masking leaves out, and of the others.

    As training.evaluate.held_out_losses, which has one mean a mail.
    """
    import torch

    from training.forward import reply_hidden_states
    from training.loss import reply_log_likelihood

    weight = base.model.get_output_embeddings().weight  # type: ignore[union-attr]
    found: dict[str, Losses] = {"held_out": [], "names": [], "rest": []}
    with torch.no_grad():
        for example in examples:
            hidden, targets, _ = reply_hidden_states(model, base, [example])
            if len(targets) != example.reply_length:
                raise ConfigError(
                    f"{len(targets)} of {example.reply_length} reply tokens are measured; measure all"
                )
            nll = -reply_log_likelihood(hidden, weight, targets)  # type: ignore[arg-type]
            name = torch.zeros(len(nll), dtype=torch.bool)
            name[[index - example.prompt_length for index in example.masked]] = True
            for which, chosen in (("held_out", nll), ("names", nll[name]), ("rest", nll[~name])):
                mean = float(chosen.mean()) if len(chosen) else 0.0
                found[which].append([round(mean, 6), len(chosen)])
    return found


def train(
    config: TrainConfig,
    examples: Sequence[Example],
    base: LoadedBase,
    out: Path,
    *,
    after_training: Callable[[PeftModel], None] | None = None,
    start_from: Path | None = None,
) -> TrainingResult:
    """Train as a job does; `out` must be a fresh folder, or the checkpoint of another run is resumed."""
    from training.lora import train_adapter

    config = choose(config, examples).config
    return train_adapter(
        config,
        encode_all(examples, config, base),
        base,
        out,
        after_training=after_training,
        start_from=start_from,
    )


def encode_all(examples: Iterable[Example], config: TrainConfig, base: LoadedBase) -> list[EncodedExample]:
    """Tokenise examples as a job does."""
    return [encode(example, base.tokenizer, config.max_seq_tokens) for example in examples]


def course(result: TrainingResult) -> dict[str, Any]:
    """Return how a training went: steps, validation, tokens."""
    return {
        "steps": result.steps,
        "best_step": result.best_step,
        "averaged_from": result.averaged_from,
        "stopped_early": result.stopped_early,
        "epochs": round(result.epochs, 3),
        "validation_emails": result.validation_emails,
        "validation": [[step, round(nll, 5)] for step, nll in result.validation_curve],
        "final_train_loss": round(result.final_train_loss, 5),
        "train_tokens": result.train_tokens,
        "train_seconds": round(result.train_seconds, 1),
    }


def numbers(losses: Iterable[MailLoss]) -> Losses:
    """Return what the ledger keeps of held-out losses."""
    return [[round(loss.nll, 6), loss.tokens] for loss in losses]


def loaded_base(config: TrainConfig, work: Path) -> LoadedBase:
    """Return this process's base model in the configured precision, loaded at the first call."""
    return _loaded_base(config.precision, work / "cache")


@lru_cache(maxsize=2)
def _loaded_base(precision: str, cache: Path) -> LoadedBase:
    from training.loaded_base import load_base

    config = TrainConfig.model_validate({"precision": precision})
    return load_base(find_base_model(BASE_MODEL), cache, config)


def prepare_mailbox(mailbox: str, config: TrainConfig) -> Prepared:
    """Return the newest `max_mails` of a mailbox as examples, split as for a first training."""
    return prepare(read_sent(find_mailbox(mailbox))[-config.data.max_mails :], config.data)


def _time_split(run: Run, work: Path) -> dict[str, Any]:
    # Imported here: it opens a database, which no other kind needs.
    from tests.benchmarks.quality.time_split import train_over_time

    return train_over_time(run, work)


def _arm(run: Run, work: Path) -> dict[str, Any]:
    # Imported here: it imports this module.
    from tests.benchmarks.quality.arms import measure_arm

    return measure_arm(run, work)


def _cross(run: Run, work: Path) -> dict[str, Any]:
    from tests.benchmarks.quality.arms import measure_cross

    return measure_cross(run, work)


def _learnt_by_heart(run: Run, work: Path) -> dict[str, Any]:
    from tests.benchmarks.quality.arms import measure_learnt_by_heart

    return measure_learnt_by_heart(run, work)


def _every_look(run: Run, work: Path) -> dict[str, Any]:
    from tests.benchmarks.quality.average import measure_every_look

    return measure_every_look(run, work)


def _instructions(run: Run, work: Path) -> dict[str, Any]:
    from tests.benchmarks.quality.playback import measure_instructions

    return measure_instructions(run, work)


KINDS: dict[str, Callable[[Run, Path], dict[str, Any]]] = {
    "adapter": train_and_judge,
    "judged in fp32": train_and_judge_in_fp32,
    "judged by token": train_and_judge_names,
    "over time": _time_split,
    "newest mails": train_on_newest,
    "arm": _arm,
    "cross": _cross,
    "learnt by heart": _learnt_by_heart,
    "instructions": _instructions,
    "every look": _every_look,
}
