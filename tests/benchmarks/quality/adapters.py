"""Adapters and what they answer, made once and kept in the work folder, so that several parts share them.

    <work>/adapters/<key>/     adapter/ (PEFT), adapter.gguf, course.json (numbers)
    <work>/losses/<key>.json   [nll, tokens] per mail of one arm on one set of mails
    <work>/answers/<key>.jsonl one generated answer a line: mail text, which never leaves this folder

Keys are digests of everything that decides the content except the code: delete the folders to make them anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

from pydantic import ValidationError

from serving.base import Serving, adapter_name
from serving.llamacpp import LlamaCppServing
from tests.benchmarks.quality import trl_defaults
from tests.benchmarks.quality.measure import (
    BASE_MODEL,
    course,
    encode_all,
    loaded_base,
    prepare_mailbox,
    train,
)
from training.base_models import find_base_model
from training.choose import choose
from training.config import NOT_IN_RECIPE, TrainConfig, load_train_config
from training.dataset import encode, prompt_messages, to_jsonl
from training.errors import ConfigError
from training.export import export_gguf
from training.measure import TRAIN_SAMPLE, spread_evenly
from training.panel_file import PanelMember
from training.plan import plan_epochs, trained_on
from training.references import reference_adapters
from training.schemas import Example, Generated, GenerateOptions, MailLoss

OURS: dict[str, Any] = {"preset": "default"}
"""The shipped default, with what it chooses from the mail."""


@dataclass(frozen=True)
class Mails:
    """A mailbox, split as training splits it."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]

    @property
    def all(self) -> tuple[Example, ...]:
        return (*self.train, *self.held_out)


@lru_cache(maxsize=16)
def read_mails(mailbox: str) -> Mails:
    """Return a real mailbox by name, prepared with the default settings."""
    prepared = prepare_mailbox(mailbox, load_train_config("default"))
    return Mails(prepared.train, prepared.held_out)


# ---- adapters --------------------------------------------------------------------------------------


def trained(mailbox: str, recipe: dict[str, Any], work: Path) -> Path:
    """Return the folder of an adapter, trained first when it is not there.

    `recipe` has a `preset` and `overrides` of it; `mails_per_step` and `warmup_steps` where a recipe counts
    in those; `trainer: trl` for TRL's and PEFT's own defaults.

    Raises TrainingDiverged; the next call tries again.
    """
    mails = read_mails(mailbox)
    config, trainer = choose(config_of(recipe), mails.train).config, recipe.get("trainer", "ours")
    base = loaded_base(config, work)
    examples = encode_all(mails.train, config, base)
    if "mails_per_step" in recipe:
        mean_tokens = sum(len(e.input_ids) for e in examples) / len(examples)
        config = config.model_copy(update={"batch_tokens": round(recipe["mails_per_step"] * mean_tokens)})
    if "warmup_steps" in recipe:
        steps = sum(map(len, plan_epochs(examples, config)))
        config = config.model_copy(update={"warmup_fraction": recipe["warmup_steps"] / steps})
    chosen = config.model_dump(mode="json", exclude=NOT_IN_RECIPE)
    folder = work / "adapters" / digest(BASE_MODEL, trainer, chosen, to_jsonl(mails.train))
    with _alone(folder):
        if (folder / "course.json").is_file():
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        if trainer == "trl":
            found = trl_defaults.train(config, examples, work / "cache", folder / "adapter")
        else:
            # A job refuses a training whose loss stays flat; here it is a recipe's result.
            with mock.patch("training.run.stop_if_flat"):
                found = course(train(config, mails.train, base, folder))
        export_gguf(folder / "adapter", base.info, base.model.config.to_dict(), folder / "adapter.gguf")
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        _write(folder / "course.json", {"mailbox": mailbox, "config": chosen, **found})
    return folder


def config_of(recipe: dict[str, Any]) -> TrainConfig:
    """Return the preset of a recipe with its overrides."""
    return load_train_config(recipe.get("preset", "default"), recipe.get("overrides"))


def read_course(folder: Path) -> dict[str, Any]:
    """Return how the training of an adapter went: numbers and settings."""
    found: dict[str, Any] = json.loads((folder / "course.json").read_text(encoding="utf-8"))
    return found


def references(panel: Sequence[PanelMember], work: Path) -> dict[str, Path]:
    """Return the adapters of the reference panel, as a job has them."""
    return reference_adapters(loaded_base(load_train_config("default"), work), panel, work / "cache")


# ---- losses ----------------------------------------------------------------------------------------


def trained_sample(mailbox: str, folder: Path, work: Path) -> tuple[Example, ...]:
    """Return the sample of mails that the adapter in `folder` was really trained on, as a job takes it."""
    found = read_course(folder)
    config = TrainConfig.model_validate(found["config"])
    mails = read_mails(mailbox)
    examples = encode_all(mails.train, config, loaded_base(config, work))
    used = {example.id for example in trained_on(examples, config, found["best_step"])}
    return spread_evenly([example for example in mails.train if example.id in used], TRAIN_SAMPLE)


def losses(folder: Path | None, examples: Sequence[Example], work: Path) -> tuple[MailLoss, ...]:
    """Return the loss of every mail under an adapter, or under the base alone (None)."""
    config = load_train_config("default")
    kept = work / "losses" / f"{digest(_arm(folder), to_jsonl(examples))}.json"
    with _alone(kept):
        if not kept.is_file():
            _write(
                kept, [[loss.nll, loss.tokens] for loss in _measure_losses(folder, examples, config, work)]
            )
    return tuple(
        MailLoss(example_id=example.id, thread_id=example.thread_id, nll=nll, tokens=int(tokens))
        for example, (nll, tokens) in zip(examples, json.loads(kept.read_text()), strict=True)
    )


def _measure_losses(
    folder: Path | None, examples: Sequence[Example], config: TrainConfig, work: Path
) -> list[MailLoss]:
    from peft import LoraConfig, get_peft_model

    from training.evaluate import held_out_losses, losses_of_saved_adapter
    from training.loaded_base import restore_base

    base = loaded_base(config, work)
    encoded = [encode(example, base.tokenizer, config.max_seq_tokens) for example in examples]
    if folder is not None:
        peft = folder / "adapter" if (folder / "adapter").is_dir() else folder
        return losses_of_saved_adapter(peft, base, encoded, config.batch_tokens)
    model = get_peft_model(base.model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    try:
        return held_out_losses(model, base, encoded, config.batch_tokens, adapter=False)
    finally:
        restore_base(model, base)


# ---- answers ---------------------------------------------------------------------------------------


@contextmanager
def engine(work: Path) -> Iterator[Serving]:
    """Yield the embedded serving engine on one thread."""
    gguf = find_base_model(BASE_MODEL).gguf_path
    if gguf is None:
        raise ConfigError(f"{BASE_MODEL} has no GGUF file for the embedded engine. Run `make setup`.")
    with closing(
        LlamaCppServing(gguf, work / "served", threads=1, timeout_s=900, start_timeout_s=900)
    ) as serving:
        yield serving


def answers(
    folder: Path | None,
    examples: Sequence[Example],
    serving: Serving,
    work: Path,
    *,
    seed: int,
    max_tokens: int,
) -> tuple[Generated, ...]:
    """Return the answers of an adapter (None: the base) to the prompts of `examples`; kept as they come.

    The app's own sampling; the n-th prompt has the seed `seed` + n.
    """
    prompts = [[example.instruction, example.input] for example in examples]
    kept = work / "answers" / f"{digest(_arm(folder), prompts, seed, max_tokens)}.jsonl"
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(kept):
        found = _read_answers(kept)
        if len(found) == len(examples):
            return tuple(found)
        name = None if folder is None else adapter_name(f"quality-{folder.name}", 1)
        if folder is not None and name is not None:
            serving.publish(folder / "adapter.gguf", name)
        with kept.open("w", encoding="utf-8") as file:
            file.writelines(f"{answer.model_dump_json()}\n" for answer in found)
            for number, example in list(enumerate(examples))[len(found) :]:
                messages = prompt_messages(example.instruction, example.input)
                options = GenerateOptions(seed=seed + number, max_tokens=max_tokens)
                found.append(serving.generate(name, messages, options))
                print(found[-1].model_dump_json(), file=file, flush=True)
        if name is not None:
            serving.remove(name)
    return tuple(found)


def _read_answers(kept: Path) -> list[Generated]:
    """Return the answers that are whole: the last one may be torn by a kill."""
    found = []
    for line in kept.read_text(encoding="utf-8").splitlines() if kept.is_file() else []:
        try:
            found.append(Generated.model_validate_json(line))
        except ValidationError:
            break
    return found


# ---- keys ------------------------------------------------------------------------------------------


def digest(*what: Any) -> str:
    """Return a short digest of JSON values."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def _arm(folder: Path | None) -> str:
    return "base" if folder is None else f"{folder.parent.name}/{folder.name}"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold `path` against the other processes of the benchmark, which would make the same thing beside us."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(file: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(json.dumps(value), encoding="utf-8")
    aside.replace(file)
