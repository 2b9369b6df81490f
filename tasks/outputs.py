"""What the arms of the gate write: base, candidate and the adapter in use answer held-out prompts. CPU side.

The candidate is judged as it would be served: converted, in the engine, under its exact name, with the app's
own sampling and fixed seeds. Every answer goes to `outputs.json` in the job folder as it comes, so that a
crash or a busy engine costs the answers under way; the file holds mail text and goes with the data set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from pydantic import ValidationError

from serving.base import Serving
from store import jobs
from tasks.job_folder import ADAPTER_GGUF, DATASET, HELD_OUT, OUTPUTS, JobFolder
from tasks.measured import read_measured, training_metrics
from tasks.progress import show_progress
from tasks.publish import SERVING_DELAYS, place_adapter, serving_for, serving_is_away
from tasks.side_by_side import Look, side_by_side
from tasks.stages import require_consent, stage, stop_if_cancelled
from tasks.tools import database, job_folder, settings, without_mail_text
from training.dataset import from_jsonl, prompt_messages
from training.errors import AdapterRefused, ContextExceeded, ServingError, StorageError
from training.evidence import Outputs, chosen_prompts
from training.gate_config import GateConfig, load_gate_config
from training.harm import Generation
from training.schemas import (
    STAGE_PROGRESS,
    EventLevel,
    Example,
    Generated,
    GenerateOptions,
    Job,
    Schema,
    Stage,
)

BASE, BASE_TO_TRAINING, CANDIDATE, CURRENT = "base", "baseToTraining", "candidate", "current"
"""Keys of outputs.json."""
SPAN = STAGE_PROGRESS[Stage.PUBLISH] - STAGE_PROGRESS[Stage.EVALUATE]
"""Answers move the job from 85 to 90 %."""


class Answers(Schema):
    """What one arm answered so far, as outputs.json keeps it."""

    asked: str
    """Digest of who was asked what, and how; answers to anything else are not gone on from."""
    answers: tuple[Generated | None, ...] = ()
    """In the order of the prompts; None: the engine's context cannot hold the prompt or its answer."""


@dataclass(frozen=True)
class Arm:
    """Somebody who answers prompts."""

    key: str
    name: str | None
    """Under which the engine serves it; None is the plain base."""
    digest: str
    """Of the adapter, or of the base's weights."""
    prompts: tuple[Example, ...]

    def asked(self, config: GateConfig) -> str:
        """Return a digest of everything that decides the answers."""
        prompts = [[example.instruction, example.input] for example in self.prompts]
        asked = json.dumps([self.digest, config.seed, config.max_tokens, prompts])
        return hashlib.sha256(asked.encode("utf-8")).hexdigest()


@task(
    # The engine may be busy or restarting: the answers that it gave are kept.
    retries=len(SERVING_DELAYS),
    retry_delay_seconds=SERVING_DELAYS,
    retry_condition_fn=serving_is_away,
    cache_policy=NO_CACHE,
)
def write_outputs(job_id: str) -> None:
    """Put the candidate into the engine and let all arms answer; answers that exist are not asked for again.

    Raises ServingUnavailable (after the retries), ServingError, AdapterRefused, NoConsent, TrainingCancelled.
    """
    folder = job_folder(job_id)
    with without_mail_text("Writing the outputs"), stage(job_id, Stage.EVALUATE) as job:
        require_consent(job.user_id)
        job = _note_training(job, folder)
        config = load_gate_config(settings().gate)
        with serving_for(job, many=True) as engine:
            name = place_adapter(job, engine).name
            arms = _arms(job, name, engine, folder, config)
            _let_answer(job, engine, arms, folder, config)
    get_run_logger().info("%d prompts answered", sum(len(arm.prompts) for arm in arms))


def read_outputs(folder: JobFolder, config: GateConfig) -> Outputs:
    """Return what the arms wrote; a prompt that one of them could not answer counts for none of them.

    Raises StorageError when answers are missing.
    """
    kept = _read_kept(folder)
    prompts = _held_out_prompts(folder, config)
    arms = [kept[key].answers for key in (BASE, CANDIDATE, CURRENT) if key in kept]
    if not {BASE, CANDIDATE, BASE_TO_TRAINING} <= kept.keys() or any(len(a) != len(prompts) for a in arms):
        raise StorageError(
            f"{OUTPUTS} of job {folder.job_id} does not answer all {len(prompts)} prompts. Run "
            f"`ownvoice retry {folder.job_id}`: training is not repeated."
        )
    whole = [place for place in range(len(prompts)) if all(answers[place] for answers in arms)]

    def written(answers: Sequence[Generated | None]) -> tuple[Generation, ...]:
        given = [(prompts[place], answers[place]) for place in whole]
        return tuple(
            Generation(prompt_messages(example.instruction, example.input)[-1].content, a.text, a.stopped)
            for example, a in given
            if a is not None
        )

    return Outputs(
        base=written(kept[BASE].answers),
        candidate=written(kept[CANDIDATE].answers),
        current=written(kept[CURRENT].answers) if CURRENT in kept else None,
        base_to_training=tuple(answer.text for answer in kept[BASE_TO_TRAINING].answers if answer),
    )


def _note_training(job: Job, folder: JobFolder) -> Job:
    """Record how the training went, which adapter it left and its cost: true whatever the gate will say."""
    measured = read_measured(folder)
    return jobs.record(
        database(),
        job.id,
        metrics=training_metrics(measured),
        adapter_size=folder.size_of(ADAPTER_GGUF),
        adapter_digest=measured.adapter_digest,
        adapter_path=f"{folder.url}/{ADAPTER_GGUF}",
        # What the device spent on this job; a cohort's jobs share one run, not one bill.
        actual_cost=round(measured.paid_seconds / 3600 * settings().hourly_price, 6),
        eta_seconds=None,
    )


def _arms(job: Job, name: str, engine: Serving, folder: JobFolder, config: GateConfig) -> list[Arm]:
    """Return who answers what, arm by arm: an engine that holds one adapter at a time reloads least."""
    prompts = _held_out_prompts(folder, config)
    to_training = chosen_prompts(from_jsonl(folder.read_text(DATASET)), config.judge_outputs)
    base = engine.base_digest()
    arms = [
        Arm(BASE, None, base, prompts),
        Arm(BASE_TO_TRAINING, None, base, to_training),
        Arm(CANDIDATE, name, str(job.adapter_digest), prompts),
    ]
    current = _current(job, engine)
    if current is not None:
        arms.append(Arm(CURRENT, current.model_name, str(current.adapter_digest), prompts))
    return arms


def _held_out_prompts(folder: JobFolder, config: GateConfig) -> tuple[Example, ...]:
    return chosen_prompts(from_jsonl(folder.read_text(HELD_OUT)), config.outputs)


def _current(job: Job, engine: Serving) -> Job | None:
    """Return the job whose adapter is in use, when the engine holds it on this base."""
    current = jobs.current_adapter(database(), job.user_id)
    if current is None or current.model_name is None or current.base_model != job.base_model:
        return None
    try:
        engine.verify(current.model_name, str(current.adapter_digest))
    except (ServingError, AdapterRefused) as exc:
        # A retrain is also how a lost adapter is replaced: it is judged without these answers.
        jobs.add_event(
            database(),
            job.id,
            f"{current.model_name} cannot be asked for comparison: {exc}",
            level=EventLevel.WARN,
        )
        return None
    return current


def _let_answer(
    job: Job, engine: Serving, arms: Sequence[Arm], folder: JobFolder, config: GateConfig
) -> None:
    kept = _what_was_answered(folder)
    # What an earlier attempt asked of an arm that is gone must not be read as this one's.
    kept = {arm.key: kept[arm.key] for arm in arms if arm.key in kept}
    done, total = 0, sum(len(arm.prompts) for arm in arms)
    for arm in arms:
        asked = arm.asked(config)
        if arm.key not in kept or kept[arm.key].asked != asked:
            kept[arm.key] = Answers(asked=asked)
            _write_kept(folder, kept)
        done += len(kept[arm.key].answers)
        left = range(len(kept[arm.key].answers), len(arm.prompts))
        asks = [partial(_answer, engine, arm, number, config) for number in left]
        look = partial(stop_if_cancelled, job.id)
        with closing(side_by_side(asks, engine.at_once, look)) as answers:
            for answer in answers:
                kept[arm.key] = Answers(asked=asked, answers=(*kept[arm.key].answers, answer))
                _write_kept(folder, kept)
                done += 1
                _show(job.id, done, total)
    too_long = sum(answer is None for arm in kept.values() for answer in arm.answers)
    if too_long:
        jobs.add_event(
            database(),
            job.id,
            f"{too_long} of {total} answers do not fit into the engine's context; their prompts are left out",
            level=EventLevel.WARN,
        )


def _answer(engine: Serving, arm: Arm, number: int, config: GateConfig, _: Look) -> Generated | None:
    example = arm.prompts[number]
    # The defaults are the app's own sampling; a prompt has the same seed for every arm.
    options = GenerateOptions(seed=config.seed + number, max_tokens=config.max_tokens)
    try:
        return engine.generate(arm.name, prompt_messages(example.instruction, example.input), options)
    except ContextExceeded:
        return None


def _show(job_id: str, done: int, total: int) -> None:
    percent = STAGE_PROGRESS[Stage.EVALUATE] + SPAN * done / total
    data = {"phase": "outputs", "answered": done, "answers": total} if done == total else None
    job = jobs.report_progress(database(), job_id, percent, data)
    if job is not None:
        show_progress(job, f"{done} of {total} answers", now=done == total)


def _what_was_answered(folder: JobFolder) -> dict[str, Answers]:
    """Return the answers of an earlier attempt; a torn file is asked for anew, else no retry would help."""
    try:
        return _read_kept(folder)
    except (StorageError, ValidationError):  # storage that is away fails at the next write
        return {}


def _read_kept(folder: JobFolder) -> dict[str, Answers]:
    if not folder.exists(OUTPUTS):
        return {}
    return {key: Answers.model_validate(arm) for key, arm in folder.read_json(OUTPUTS).items()}


def _write_kept(folder: JobFolder, kept: dict[str, Answers]) -> None:
    folder.write_json(OUTPUTS, {key: arm.to_json_dict() for key, arm in kept.items()})
