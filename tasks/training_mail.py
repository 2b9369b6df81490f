"""What a retrain builds on: the adapter in use, the mail that it knows, the frozen held-out set. CPU side."""

from __future__ import annotations

from dataclasses import dataclass, field

from store import jobs, mail
from tasks.job_folder import ADAPTER, METRICS, OLD_SET
from tasks.tools import database, job_folder
from training.config import TrainConfig
from training.dataset import OldSet, Retrain, examples_of
from training.errors import StorageError
from training.schemas import Example, Job, Mail, Outcome, RetrainMode
from training.start_adapter import CONFIG_FILE, WEIGHTS_FILE, find_misfit

MAX_JOBS_LOOKED_AT = 1000
MAX_LEARNT = 5000
"""Most older mails that an incremental adapter is compared with: what one training may read at most
(`DataConfig.max_mails`), 2 to 3 seconds of cleaning."""


@dataclass(frozen=True)
class RetrainPlan:
    """From what one job learns, decided before any mail is read."""

    mode: RetrainMode
    """Not always the one asked for: `notice` says why."""
    seen: int | None = None
    """`Mail.position` up to which the adapter in use knows the mail; None without one."""
    start_adapter: str | None = None
    """Id of the job whose adapter training goes on from."""
    old: OldSet = field(default_factory=OldSet)
    notice: str = ""


@dataclass(frozen=True)
class TrainingMail:
    """The mail of one training in memory, and what it was chosen from."""

    mails: list[Mail]
    sent: int
    last_position: int | None
    drafted: int
    retrain: Retrain
    chosen: str
    """One sentence of counts for the event stream; "" for a first training."""


def plan_retrain(job: Job, config: TrainConfig) -> RetrainPlan:
    """Decide the mode, the start and what counts as new. Raises StorageError, StoreError.

    A first training, and an adapter in use that no longer fits, end in a fresh adapter on the newest mail.
    """
    current = jobs.current_adapter(database(), job.user_id)
    if current is None:
        first = config.mode is RetrainMode.INCREMENTAL
        return RetrainPlan(
            RetrainMode.ROLLING,
            notice="There is no adapter in use to go on from: a fresh one is trained on the newest mail"
            if first
            else "",
        )
    old = _frozen_set(job.user_id)
    if config.mode is not RetrainMode.INCREMENTAL:
        return RetrainPlan(config.mode, current.last_position, old=old)
    problem = _why_not_continued(current, job, config)
    if problem:
        return RetrainPlan(
            RetrainMode.ROLLING,
            current.last_position,
            old=old,
            notice=f"Training does not go on from version {current.version}: {problem}. "
            "A fresh adapter is trained on the newest mail",
        )
    return RetrainPlan(RetrainMode.INCREMENTAL, current.last_position, current.id, old)


def read_training_mail(job: Job, config: TrainConfig, plan: RetrainPlan) -> TrainingMail:
    """Read the planned mail: at most `max_mails` bodies, those of the frozen held-out set included."""
    db, limit = database(), config.data.max_mails
    # First of all: mail that arrives while this runs is new to the next training, not lost to both.
    state = mail.fetch_sent_state(db, job.user_id)
    old = mail.fetch_mail_by_hash(db, job.user_id, plan.old.mails, limit // 2)
    chosen = mail.select_mail(
        db,
        job.user_id,
        limit - len(old),
        up_to=state.last_position or 0,
        seen=plan.seen,
        mode=plan.mode,
        seed=job.id,
        apart=plan.old.threads,
    )
    return TrainingMail(
        mails=[*old, *chosen.mails],
        sent=state.sent,
        last_position=state.last_position,
        drafted=chosen.drafted,
        retrain=Retrain(
            old=plan.old,
            unseen=None if plan.seen is None else chosen.unseen,
            only_new=plan.mode is RetrainMode.INCREMENTAL,
        ),
        chosen=""
        if plan.seen is None
        else f"Retrain ({plan.mode}): {chosen.new} of {chosen.new_found} new mails, "
        f"{len(chosen.mails) - chosen.new} of {chosen.old_found} older ones, {len(old)} kept to measure on",
    )


def read_learnt_mail(job: Job, config: TrainConfig, plan: RetrainPlan) -> tuple[Example, ...]:
    """Return what the adapter that training goes on from may have learnt, as examples; () for a fresh one.

    It is compared with the new adapter's answers and never trained on: the newest `MAX_LEARNT` older mails
    that are still in the mailbox, but for the threads of the frozen held-out set, which nobody learns.
    """
    if plan.start_adapter is None or plan.seen is None:
        return ()
    older = mail.select_mail(database(), job.user_id, MAX_LEARNT, up_to=plan.seen, apart=plan.old.threads)
    return examples_of(older.mails, config.data)


def can_go_on(job: Job) -> bool:
    """Tell whether the data set of an earlier attempt can still be used: what it starts from is there."""
    if job.incremental_from is None or job_folder(job.id).exists(METRICS):
        return True
    return job_folder(job.incremental_from).exists(f"{ADAPTER}/{WEIGHTS_FILE}")


def _why_not_continued(current: Job, job: Job, config: TrainConfig) -> str:
    """Say in a few words why the adapter in use cannot be trained further; "" if it can."""
    if current.base_model != job.base_model:
        return f"it was made for {current.base_model}, not for {job.base_model}"
    if current.last_position is None:
        return "it was trained before it was recorded which mail it knows"
    folder = job_folder(current.id)
    if not folder.exists(f"{ADAPTER}/{WEIGHTS_FILE}"):
        return "its files are no longer in storage"
    try:
        return find_misfit(folder.read_json(f"{ADAPTER}/{CONFIG_FILE}"), config.lora)
    except StorageError:
        return "its configuration cannot be read"


def _frozen_set(user_id: str) -> OldSet:
    """Return the held-out set of the person's first promoted training, as its folder or a later one has it.

    Every retrain carries a copy on, so that no single folder is needed. Empty when none is left: then this
    training's own held-out set is the first again.
    """
    found = jobs.list_jobs(database(), user_id, MAX_JOBS_LOOKED_AT)
    for job in sorted(found, key=lambda job: job.version):
        if job.outcome is Outcome.PROMOTED and job_folder(job.id).exists(OLD_SET):
            return OldSet.model_validate(job_folder(job.id).read_json(OLD_SET))
    return OldSet()
