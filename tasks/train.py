"""Training one job of a cohort. GPU side: no database and no addresses; job folders in, adapters out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect import get_run_logger, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE

from tasks.job_folder import (
    ADAPTER,
    ADAPTER_GGUF,
    CANCEL,
    CHECKPOINT,
    DATASET,
    ERROR,
    HELD_OUT,
    LEARNT,
    METRICS,
    OLD_HELD_OUT,
    PANEL,
    PROGRESS,
    RECIPE,
    SPEC,
    JobFolder,
)
from tasks.progress import not_essential
from tasks.tools import settings, without_mail_text
from tasks.trainer_process import trainers_here
from training.base_models import find_base_model
from training.config import TrainConfig, parse_train_config
from training.dataset import ChatTemplate, encode, from_jsonl
from training.errors import ConfigError, OwnvoiceError, StorageError, TrainingCancelled
from training.panel_file import PanelMember, from_panel_jsonl
from training.precision import settle_precision
from training.schemas import CohortResult, JobSpec, MeasuredLosses, TrainingProgress, TrainingResult
from training.start_adapter import WEIGHTS_FILE, digest_of

if TYPE_CHECKING:
    from training.loaded_base import LoadedBase

PROGRESS_EVERY_S = 0.5
"""How often progress.json is written and the cancel marker is looked for."""
ARTIFACT_EVERY_S = 3.0
"""How often the progress artifact is updated: each update is a call to the Prefect server."""
CURVE_ROWS = 40
_BASES: dict[tuple[str, str, str], LoadedBase] = {}
"""The base in memory, at most one, by name, precision and quantisation."""


@task(task_run_name="train-{job_id}", cache_policy=NO_CACHE)
def train_job(job_id: str, storage_url: str) -> CohortResult:
    """Train, measure and convert one job's adapter. Never raises: a bad job must not stop its neighbours."""
    started = time.monotonic()
    folder = JobFolder(storage_url, job_id)
    try:
        with without_mail_text("Training"):
            if not folder.exists(METRICS):
                folder.remove(ERROR, PROGRESS)
                if is_stopped(folder):
                    raise TrainingCancelled(f"Job {job_id} was cancelled before its training began.")
                _train(folder, started)
    except OwnvoiceError as exc:
        get_run_logger().error("job %s: %s %s", job_id, exc.code, exc)
        if folder.exists(SPEC):  # a job that ended without waiting for us took its folder along
            folder.write_json(ERROR, {"code": exc.code, "message": str(exc)})
        return CohortResult(
            job_id=job_id,
            ok=False,
            error_code=exc.code,
            error_message=str(exc),
            seconds=time.monotonic() - started,
        )
    return CohortResult(job_id=job_id, ok=True, seconds=time.monotonic() - started)


def is_stopped(folder: JobFolder) -> bool:
    """Tell whether somebody asked for the job to stop, or its folder is gone because it has ended."""
    return folder.exists(CANCEL) or not folder.exists(SPEC)


def _train(folder: JobFolder, started: float) -> None:
    """Do one job, in event order: read, load the base, train, measure, convert, write back."""
    # Imported here: loading this module must stay quick, and these cost seconds.
    from training import lora
    from training.device import best_device
    from training.export import export_gguf
    from training.measure import choose_mail, measure_losses
    from training.recipe import describe_recipe

    spec = JobSpec.model_validate(folder.read_json(SPEC))
    config = settle_precision(parse_train_config(spec.train_config), best_device().type)
    report = _Reporter(folder, started)
    report.phase("load")
    dataset, held_out = folder.read_text(DATASET), folder.read_text(HELD_OUT)
    before_load = time.monotonic()
    base = _loaded_base(spec.base_model, config)
    load_seconds = time.monotonic() - before_load
    train_examples = [encode(e, base.tokenizer, config.max_seq_tokens) for e in from_jsonl(dataset)]
    held_out_examples = [encode(e, base.tokenizer, config.max_seq_tokens) for e in from_jsonl(held_out)]
    old = folder.read_text(OLD_HELD_OUT) if folder.exists(OLD_HELD_OUT) else ""
    old_examples = [encode(e, base.tokenizer, config.max_seq_tokens) for e in from_jsonl(old)]
    if not train_examples or not held_out_examples:
        raise ConfigError(f"The data set of job {folder.job_id} is empty; retry the job.")

    personas = from_panel_jsonl(folder.read_text(PANEL)) if folder.exists(PANEL) else ()
    before_panel = time.monotonic()
    references = _reference_adapters(base, personas, report)
    panel_seconds = time.monotonic() - before_panel

    with folder.workspace(without=(LEARNT,)) as workspace:
        with _start_adapter(folder, spec) as start:
            result = lora.train_adapter(
                config,
                train_examples,
                base,
                workspace,
                on_progress=report.step,
                should_stop=report.cancelled,
                # Storage that is no local disk gets each checkpoint, or a lost GPU machine takes it along.
                on_checkpoint=lambda: folder.push(workspace, CHECKPOINT),
                start_from=start,
            )
            start_digest = None if start is None else digest_of(start)
        report.phase("held_out")
        with _current_adapter(folder, spec) as current:
            losses = measure_losses(
                base,
                choose_mail(
                    base,
                    config,
                    train=train_examples,
                    held_out=held_out_examples,
                    old=old_examples,
                    personas=personas,
                    kept_step=result.best_step,
                ),
                config.batch_tokens,
                candidate=workspace / ADAPTER,
                current=current,
                references=references,
                before_each_batch=report.still_measuring,
                on_unreadable=_warn_unreadable,
            )
        report.phase("export")
        digest = export_gguf(
            workspace / ADAPTER, base.info, base.model.config.to_dict(), workspace / ADAPTER_GGUF
        )
        recipe = describe_recipe(base.info, config, dataset, held_out, result.device)
        recipe["chatTemplate"] = ChatTemplate.of(base.tokenizer).to_json_dict()
        recipe["startAdapter"] = spec.start_adapter and {"job": spec.start_adapter, "digest": start_digest}
        folder.write_json(RECIPE, recipe)
        folder.push(workspace, ADAPTER, ADAPTER_GGUF, CHECKPOINT)
        seconds = time.monotonic() - started - panel_seconds
        # Written last: its presence says that the adapter is whole.
        folder.write_json(METRICS, _metrics(result, losses, digest, seconds, load_seconds, panel_seconds))
    report.finished(result)


def _reference_adapters(
    base: LoadedBase, personas: Sequence[PanelMember], report: _Reporter
) -> dict[str, Path]:
    """Return the adapters of the reference panel; the first job of a base on a machine trains them."""
    from training.references import reference_adapters

    if not personas:
        return {}
    report.phase("panel")
    return reference_adapters(
        base,
        personas,
        settings().cache,
        on_progress=report.step,
        on_left_out=lambda name, reason: get_run_logger().warning(
            "no reference adapter of %s: %s", name, reason
        ),
        should_stop=report.cancelled,
    )


def _warn_unreadable(what: str, reason: str) -> None:
    get_run_logger().warning("%s cannot be compared with: %s", what, reason)


@contextmanager
def _current_adapter(folder: JobFolder, spec: JobSpec) -> Iterator[Path | None]:
    """Yield the PEFT files of the adapter in use, or None."""
    if spec.current_adapter is None:
        yield None
        return
    with JobFolder(folder.storage_url, spec.current_adapter).workspace() as workspace:
        yield workspace / ADAPTER


@contextmanager
def _start_adapter(folder: JobFolder, spec: JobSpec) -> Iterator[Path | None]:
    """Yield the PEFT files that training goes on from, or None; raises StorageError when they are lost."""
    if spec.start_adapter is None:
        yield None
        return
    other = JobFolder(folder.storage_url, spec.start_adapter)
    if not other.exists(f"{ADAPTER}/{WEIGHTS_FILE}"):
        raise StorageError(
            f"The adapter of job {spec.start_adapter}, from which training was to go on, is no longer in "
            f"storage. Run `ownvoice retry {folder.job_id}`: it then starts from a fresh adapter."
        )
    with other.workspace() as workspace:
        yield workspace / ADAPTER


def _loaded_base(base_model: str, config: TrainConfig) -> LoadedBase:
    """Load the base once per flow run; the next job of the cohort finds it in memory.

    Raises NotEnoughMemory before anything is read when the job's training cannot fit.
    """
    from training.loaded_base import load_base

    key = (base_model, config.precision, config.quantise)
    if key not in _BASES:
        _BASES.clear()  # two bases at once would need the memory of both
        started = time.monotonic()
        base = load_base(find_base_model(base_model), settings().cache, config)
        _BASES[key] = replace(base, trainers=trainers_here())
        get_run_logger().info("loaded %s in %.1f s", base_model, time.monotonic() - started)
    return _BASES[key]


def _metrics(
    result: TrainingResult,
    losses: MeasuredLosses,
    digest: str,
    seconds: float,
    load_seconds: float,
    panel_seconds: float,
) -> dict[str, Any]:
    """Return what the CPU side needs to judge, record and charge the job; losses are per mail, by id."""
    return {
        # A resumed training is paid for from its first step on, not only since the last crash. Trainers that
        # share a device share its price: the sum over a cohort is never more than the time that passed.
        "gpuSeconds": round(seconds / trainers_here() + result.earlier_seconds, 2),
        "trainers": trainers_here(),
        "loadSeconds": round(load_seconds, 2),
        # Apart from the job's own: paid once per base and machine, it must not make the next estimate wrong.
        "panelSeconds": round(panel_seconds / trainers_here(), 2),
        "training": result.to_json_dict(),
        "adapterDigest": digest,
        "losses": losses.to_json_dict(),
    }


class _Reporter:
    """Progress for the CPU side (progress.json) and for people in the Prefect UI (artifacts)."""

    def __init__(self, folder: JobFolder, started: float) -> None:
        self.folder = folder
        self.started = started
        self.last = TrainingProgress(
            step=0, steps=1, epoch=0, loss=0, tokens=0, tokens_per_second=0, eta_seconds=0, phase="load"
        )
        self._written = self._shown = self._asked = 0.0
        self._stop = False
        self._artifact: UUID | None = None

    def phase(self, phase: str) -> None:
        self.last = self.last.model_copy(update={"phase": phase, "seconds": self._device_seconds()})
        self._write()

    def step(self, progress: TrainingProgress) -> None:
        now = time.monotonic()
        self.last = progress.model_copy(update={"seconds": self._device_seconds()})
        if now - self._written >= PROGRESS_EVERY_S or progress.step == progress.steps:
            self._write()
        if progress.phase == "train" and now - self._shown >= ARTIFACT_EVERY_S:
            self._shown = now
            self._show(100 * progress.step / progress.steps)

    def cancelled(self) -> bool:
        now = time.monotonic()
        if now - self._asked >= PROGRESS_EVERY_S:
            self._asked = now
            self._stop = self._stop or is_stopped(self.folder)
        return self._stop

    def still_measuring(self) -> None:
        """Let the follower see that the measuring goes on and what it costs; raises TrainingCancelled."""
        if time.monotonic() - self._written >= PROGRESS_EVERY_S:
            self.phase(self.last.phase)
        if self.cancelled():
            raise TrainingCancelled(f"Job {self.folder.job_id} was cancelled while it was measured.")

    def finished(self, result: TrainingResult) -> None:
        job_id = self.folder.job_id
        self._show(100)
        every = max(1, len(result.loss_curve) // CURVE_ROWS)
        rows = [
            {"step": step, "training loss": round(loss, 4)}
            for step, loss in result.loss_curve
            if step % every == 0 or step == len(result.loss_curve)
        ]
        text = (
            f"{result.steps} steps, {result.train_tokens} tokens in {result.train_seconds:.0f} s on "
            f"{result.device}: {result.train_tokens_per_second:.0f} tokens/s, at most "
            f"{result.peak_memory_bytes / 1e9:.1f} GB. {result.stop_reason}\n\n{loss_plot(result)}"
        )
        with not_essential("The loss curve"):
            create_table_artifact(table=rows, key=f"loss-curve-{job_id}", description="Nat per reply token")
            create_markdown_artifact(key=f"training-{job_id}", markdown=text, description="Training run")

    def _device_seconds(self) -> float:
        return round((time.monotonic() - self.started) / trainers_here(), 2)

    def _write(self) -> None:
        self._written = time.monotonic()
        self.folder.write_json(PROGRESS, self.last.to_json_dict())

    def _show(self, percent: float) -> None:
        now = self.last
        text = f"step {now.step} of {now.steps}, loss {now.loss:.2f}, {now.eta_seconds:.0f} s left"
        with not_essential("The training's progress"):
            if self._artifact is None:
                self._artifact = create_progress_artifact(
                    progress=percent, key=f"training-progress-{self.folder.job_id}", description=text
                )
            else:
                update_progress_artifact(self._artifact, progress=percent, description=text)


def loss_plot(result: TrainingResult) -> str:
    """Return the loss curve as a Markdown image (a PNG in a data URL)."""
    import base64
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([step for step, _ in result.loss_curve], [loss for _, loss in result.loss_curve], linewidth=1.4)
    if result.validation_curve:
        axes.plot(*zip(*result.validation_curve, strict=True), marker="o", label="validation")
        axes.legend(frameon=False)
    axes.set_xlabel("step")
    axes.set_ylabel("nat per reply token")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return f"![training loss by step](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"
