"""Publishing a proven adapter and making it the user's. CPU side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from serving.adapter_file import file_digest
from serving.base import Serving, adapter_name
from store import jobs
from tasks.job_folder import ADAPTER_GGUF, RECIPE, SAMPLES
from tasks.progress import not_essential, show_progress
from tasks.stages import forget_mail, require_consent, stage, stop_if_cancelled, take_back
from tasks.tools import changing_models, database, job_folder, serving, settings
from training.dataset import NEUTRAL_INSTRUCTIONS, ChatTemplate, prompt_messages
from training.errors import AdapterRefused, NoConsent, ServingError, ServingUnavailable, TrainingCancelled
from training.schemas import EventLevel, GateDecision, GenerateOptions, Job, Outcome, Published, Stage

SAMPLE_OPTIONS = GenerateOptions(seed=7, max_tokens=160)


def retry_delays(wait_s: float) -> list[float]:
    """Return growing pauses (2, 4, 8, … at most 60 s) that add up to at least `wait_s`."""
    delays: list[float] = []
    while sum(delays) < wait_s:
        delays.append(min(60.0, 2.0 * 2 ** len(delays)))
    return delays


def serving_is_away(task: Task[..., object], run: TaskRun, state: State[object]) -> bool:
    """Tell Prefect to try again only when the engine did not answer or was busy."""
    return isinstance(getattr(state, "data", None), ServingUnavailable)


SERVING_DELAYS = retry_delays(settings().serving_wait_s)


@task(
    # The engine may be restarting; a refused adapter is final and is not tried again.
    retries=len(SERVING_DELAYS),
    retry_delay_seconds=SERVING_DELAYS,
    retry_condition_fn=serving_is_away,
    cache_policy=NO_CACHE,
)
def publish_adapter(job_id: str) -> Published:
    """Publish under the exact version tag, verify, compare prompts, warm up; nothing is active yet.

    The engine has held it since it was judged: what is placed again here is proven again.
    Raises ServingUnavailable (after the retries), ServingError, AdapterRefused, NoConsent.
    """
    with stage(job_id, Stage.PUBLISH) as job:
        require_consent(job.user_id)
        with serving_for(job) as engine:
            published = place_adapter(job, engine)
    jobs.add_event(database(), job_id, f"Published and verified {published.name} on {published.engine}")
    get_run_logger().info("published %s on %s", published.name, published.engine)
    return published


@contextmanager
def serving_for(job: Job, *, many: bool = False) -> Iterator[Serving]:
    """Open the engine for a trained job; it compares its prompts with those that the job was trained on.

    `many`: for many questions (tasks/side_by_side.py).
    """
    template = ChatTemplate.model_validate(job_folder(job.id).read_json(RECIPE)["chatTemplate"])
    with serving(job.base_model, template.render_for_server, many=many) as engine:
        yield engine


def place_adapter(job: Job, engine: Serving) -> Published:
    """Put the job's adapter into the engine under its exact name and prove it; what is there already is fine.

    Raises AdapterRefused when the file is not the one that the job's digest names, or the engine refuses it.
    """
    name = adapter_name(job.user_id, job.version)
    with job_folder(job.id).workspace() as workspace:
        _require_trained(workspace / ADAPTER_GGUF, job)
        # Recorded first, so that a cancel or a failure from here on knows what to take back.
        jobs.record(database(), job.id, model_name=name)
        engine.base_ready()
        with changing_models():
            published = engine.publish(workspace / ADAPTER_GGUF, name)
    engine.verify(name, published.digest)
    return published


@task(
    retries=len(SERVING_DELAYS),
    retry_delay_seconds=SERVING_DELAYS,
    retry_condition_fn=serving_is_away,
    cache_policy=NO_CACHE,
)
def withdraw_adapter(job_id: str) -> None:
    """Take an adapter that the gate refused out of the engine again: nobody is ever served by it.

    Raises ServingUnavailable (after the retries), ServingError.
    """
    job = jobs.find_job(database(), job_id)
    if job.model_name is None:
        return
    with serving(job.base_model) as engine, changing_models():
        engine.remove(job.model_name)
    jobs.record(database(), job_id, model_name=None)
    get_run_logger().info("withdrew %s", job.model_name)


@task(
    retries=len(SERVING_DELAYS),
    retry_delay_seconds=SERVING_DELAYS,
    retry_condition_fn=serving_is_away,
    cache_policy=NO_CACHE,
)
def write_samples(job_id: str) -> None:
    """Let base and adapter answer the same neutral prompts, for people to look at.

    An engine that cannot write them costs the job its samples, not its verified adapter.
    """
    db = database()
    job = jobs.find_job(db, job_id)
    stop_if_cancelled(job_id)
    try:
        with serving(job.base_model) as engine:
            samples = [
                {
                    "prompt": prompt,
                    "base": engine.generate(None, prompt_messages(prompt), SAMPLE_OPTIONS).text,
                    "adapter": engine.generate(job.model_name, prompt_messages(prompt), SAMPLE_OPTIONS).text,
                }
                for prompt in NEUTRAL_INSTRUCTIONS
            ]
    except ServingError as exc:
        jobs.add_event(db, job_id, f"No samples were written: {exc}", level=EventLevel.WARN)
        return
    job_folder(job_id).write_json(SAMPLES, {"samples": samples})
    with not_essential("The samples"):
        create_markdown_artifact(
            key=f"samples-{job_id}",
            markdown="\n\n".join(
                f"### {sample['prompt']}\n\n**Base**\n\n{_quoted(sample['base'])}\n\n"
                f"**Adapter**\n\n{_quoted(sample['adapter'])}"
                for sample in samples
            ),
            description="Base and adapter, same neutral prompts",
        )


@task(cache_policy=NO_CACHE)
def activate(job_id: str, decision: GateDecision) -> Job:
    """End the job: one transaction for user, job and outcome; then delete what holds mail text."""
    db = database()
    promoted = decision.outcome is Outcome.PROMOTED
    # An adapter that is not promoted was never deployed: the job ends where it was judged.
    with stage(job_id, Stage.ACTIVATE) if promoted else nullcontext():
        job = jobs.find_job(db, job_id)
        try:
            jobs.complete_job(
                db,
                job_id,
                decision.outcome,
                ai_provider=settings().engine if promoted else None,
                ai_model=job.model_name if promoted else None,
                adapter_path=job.adapter_path,
                reason=decision.reason,
            )
        except (NoConsent, TrainingCancelled):
            take_back(job)
            raise
    forget_mail(job_id)
    ended = jobs.find_job(db, job_id)
    show_progress(ended, f"{ended.outcome}")
    return ended


def _require_trained(adapter: Path, job: Job) -> None:
    """Raise AdapterRefused unless the file is the one that was measured: storage is not trusted for that."""
    found = file_digest(adapter)
    if found != job.adapter_digest:
        raise AdapterRefused(
            f"The adapter of job {job.id} is not the one that was trained ({found[:19]}…, not "
            f"{str(job.adapter_digest)[:19]}…): its file was damaged or replaced. Train again."
        )


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.strip().split("\n"))
