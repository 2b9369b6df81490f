"""The words every part of Ownvoice shares: mail, examples, jobs, results.

Frozen pydantic models only; this module imports nothing but pydantic and the standard library, so that
every package may import it. JSON names are camelCase (the app's Prisma schema), Python names snake_case.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Schema(BaseModel):
    """Frozen, refuses unknown keys, speaks camelCase in JSON and both spellings on input."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        protected_namespaces=(),
    )

    def to_json_dict(self) -> dict[str, Any]:
        """Return the camelCase, JSON-able form."""
        return self.model_dump(mode="json", by_alias=True)


# ---- mail ------------------------------------------------------------------------------------------


class Mail(Schema):
    """One message as the store holds it, with what the cleaner needs to judge it."""

    id: str
    thread_id: str
    """Messages of one conversation share it; the held-out split never cuts a thread."""
    position: int
    """Order of arrival in the store; the order of undated mail."""
    sent_at: datetime | None = None
    """Timezone-aware UTC, or None when the source had no believable date."""
    sender: str = ""
    to: tuple[str, ...] = ()
    cc: tuple[str, ...] = ()
    subject: str = ""
    body_text: str = ""
    body_html: str = ""
    headers: dict[str, str] = Field(default_factory=dict)
    """Lower-case names; only those that the filters read (see training/mail/filters.py)."""
    is_reply: bool = False
    """True when In-Reply-To or References is set, or the subject starts with a reply prefix."""
    answered_text: str = ""
    """Body of the received message that this one answers, when the store has it; else empty."""
    ai_generated: bool = False


class DropReason(StrEnum):
    """Why a sent mail is not an example. The value is the key of `DataReport.dropped`."""

    EMPTY = "empty"
    AUTO_REPLY = "auto_reply"
    BOUNCE = "bounce"
    CALENDAR = "calendar"
    MACHINE = "machine"
    LIST = "mailing_list"
    AI_GENERATED = "ai_generated"
    FORWARD_ONLY = "forward_only"
    QUOTE_ONLY = "quote_only"
    UNCLEAR_QUOTE = "unclear_quote"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    WRONG_LANGUAGE = "wrong_language"
    NEAR_DUPLICATE = "near_duplicate"
    SECRET = "secret"

    @property
    def label(self) -> str:
        """A few words for a table that a person reads."""
        return {
            "empty": "empty body",
            "auto_reply": "automatic reply",
            "bounce": "delivery report",
            "calendar": "calendar notice",
            "machine": "written by a machine",
            "mailing_list": "sent by a list",
            "ai_generated": "drafted by the AI",
            "forward_only": "forward without own words",
            "quote_only": "quote without own words",
            "unclear_quote": "own words not separable",
            "too_short": "too few own words",
            "too_long": "too long to be a mail",
            "wrong_language": "another language",
            "near_duplicate": "near-duplicate",
            "secret": "mostly a secret",
        }[self.value]


class Example(Schema):
    """One training example in Alpaca form. `output` holds the user's own words and nothing else."""

    id: str
    thread_id: str
    sent_at: datetime | None = None
    instruction: str
    input: str = ""
    """The message being answered (context, never a target), or empty."""
    output: str
    masked: tuple[tuple[int, int], ...] = ()
    """(start, end) of the characters of `output` that name third persons: read, but no training target."""


class Estimate(Schema):
    """What training would take on the device whose measured rate is used."""

    seconds: float
    tokens: int
    cost: float
    """US dollars at the configured hourly price; 0 on the own machine."""
    tokens_per_second: float
    device: str = ""
    """Where the last training of any base ran; empty before the first."""
    measured_runs: int = 0
    """Trainings of this base on that device that the estimate rests on; 0: a first guess."""
    adapter_bytes: int = 0
    """Size of the adapter that will be served."""


class MeasuredRun(Schema):
    """What one finished training took of its device; estimates rest on these."""

    device: str
    config: dict[str, Any]
    train_tokens: int = Field(gt=0)
    train_seconds: float = Field(gt=0)
    device_seconds: float
    load_seconds: float = 0
    steps: int = Field(gt=0)
    epochs: float
    examples: int = 0
    characters: int = 0


class DataReport(Schema):
    """What became of the user's sent mail; counts only, never text."""

    sent: int
    usable: int
    dropped: dict[DropReason, int] = Field(default_factory=dict)
    languages: dict[str, int] = Field(default_factory=dict)
    replaced_secrets: int = 0
    masked_third_persons: int = 0
    """Names, addresses and numbers of other people that are left out of the loss."""
    train: int = 0
    held_out: int = 0
    own_words: int = 0
    eligible: bool
    reason: str
    """One sentence a person understands; says what is missing when not eligible."""
    chosen: str = ""
    """The hyper-parameters that are chosen for this mailbox, and why, in one sentence."""
    instructions: str = ""
    """How instructions come about that are not subject lines (training/playback.py): counts."""
    estimate: Estimate | None = None

    @property
    def languages_sentence(self) -> str:
        """Which languages the mail is in, when there are several."""
        if len(self.languages) < 2:
            return ""
        return f"Languages: {', '.join(f'{code} {count}' for code, count in self.languages.items())}."


# ---- jobs ------------------------------------------------------------------------------------------


class JobStatus(StrEnum):
    PENDING = "PENDING"
    EXTRACTING_DATA = "EXTRACTING_DATA"
    PREPARING_DATA = "PREPARING_DATA"
    TRAINING = "TRAINING"
    EVALUATING = "EVALUATING"
    DEPLOYING = "DEPLOYING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        return self in FINAL_STATUSES


FINAL_STATUSES = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED})
ACTIVE_STATUSES = frozenset(JobStatus) - FINAL_STATUSES

ALLOWED_TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    # Forward by one stage or, when a retry finds a stage already finished, past it; back only from preparing
    # to extracting, since mail passes between the two in memory and a second try reads it again. Any active
    # job may fail or be cancelled; only FAILED may be taken up again (PENDING), COMPLETED and CANCELLED are
    # final.
    JobStatus.PENDING: frozenset(
        {
            JobStatus.EXTRACTING_DATA,
            JobStatus.PREPARING_DATA,
            JobStatus.TRAINING,
            JobStatus.EVALUATING,
            JobStatus.DEPLOYING,
            JobStatus.FAILED,
            JobStatus.CANCELLED,
        }
    ),
    JobStatus.EXTRACTING_DATA: frozenset({JobStatus.PREPARING_DATA, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.PREPARING_DATA: frozenset(
        {JobStatus.EXTRACTING_DATA, JobStatus.TRAINING, JobStatus.FAILED, JobStatus.CANCELLED}
    ),
    JobStatus.TRAINING: frozenset({JobStatus.EVALUATING, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.EVALUATING: frozenset(
        {JobStatus.DEPLOYING, JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED}
    ),
    JobStatus.DEPLOYING: frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.COMPLETED: frozenset(),
    JobStatus.FAILED: frozenset({JobStatus.PENDING}),
    JobStatus.CANCELLED: frozenset(),
}


class Stage(StrEnum):
    """The stages of one job, in order. `FineTuningJob.stage` is the last one that was entered."""

    EXTRACT = "extract"
    PREPARE = "prepare"
    TRAIN = "train"
    EVALUATE = "evaluate"
    PUBLISH = "publish"
    ACTIVATE = "activate"


STAGE_STATUS: dict[Stage, JobStatus] = {
    Stage.EXTRACT: JobStatus.EXTRACTING_DATA,
    Stage.PREPARE: JobStatus.PREPARING_DATA,
    Stage.TRAIN: JobStatus.TRAINING,
    Stage.EVALUATE: JobStatus.EVALUATING,
    Stage.PUBLISH: JobStatus.DEPLOYING,
    Stage.ACTIVATE: JobStatus.DEPLOYING,
}
STAGE_PROGRESS: dict[Stage, int] = {
    # Percent shown when the stage is entered (seeds, "Progress Tracking"); training moves 30 → 80.
    Stage.EXTRACT: 10,
    Stage.PREPARE: 20,
    Stage.TRAIN: 30,
    Stage.EVALUATE: 85,
    Stage.PUBLISH: 90,
    Stage.ACTIVATE: 95,
}


class Outcome(StrEnum):
    PROMOTED = "PROMOTED"
    KEPT_CURRENT = "KEPT_CURRENT"
    NOT_PROVEN = "NOT_PROVEN"


class Trigger(StrEnum):
    MANUAL = "manual"
    APP = "app"
    SCHEDULE = "schedule"
    MAIL_COUNT = "mail_count"
    FEEDBACK = "feedback"


class RetrainMode(StrEnum):
    """From what a retrain learns (seeds, "Ongoing Training Options", A to C)."""

    REPLAY = "replay"
    """From the base, on the new mail and a sample of the old, up to the cap (A)."""
    INCREMENTAL = "incremental"
    """From the adapter in use, on the new mail only (B)."""
    ROLLING = "rolling"
    """From the base, on the newest mail up to the cap (C)."""


class JobMetrics(Schema):
    """The numbers of one job; all losses are mean negative log-likelihood in nat per reply token."""

    held_out_nll_base: float | None = None
    held_out_nll_adapter: float | None = None
    held_out_nll_current: float | None = None
    held_out_emails: int = 0
    held_out_tokens: int = 0
    train_tokens: int = 0
    """Prompt + reply tokens of the training examples times the epochs actually run."""
    train_tokens_per_second: float | None = None
    train_seconds: float | None = None
    """Seconds in training steps alone; `timings.train` also holds start-up, held-out losses and export."""
    train_characters: int = 0
    """Characters of the training examples' prompts and replies."""
    device_seconds: float | None = None
    """Seconds for which the device was at work on the job: what is paid for. Where `trainers` shared it,
    their equal part of the time that passed."""
    load_seconds: float = 0
    """Reading the base model; 0 where an earlier job of the cohort had."""
    trainers: int = 1
    """Trainers that shared the device; `train_seconds` and `load_seconds` are the time that passed."""
    steps: int = 0
    epochs: float = 0
    final_train_loss: float | None = None
    peak_memory_bytes: int = 0
    device: str = ""
    gate: str = ""
    """The gate's one-sentence reason."""
    decision: GateDecision | None = None
    """Every number and threshold behind it."""
    loss_curve: tuple[tuple[int, float], ...] = ()
    """Step and training loss, at most 60 points."""
    validation_curve: tuple[tuple[int, float], ...] = ()
    """Step and loss on the validation slice."""
    chosen: str = ""
    """The hyper-parameters that were chosen for this mailbox, and why, in one sentence."""


class User(Schema):
    """One row of "User": who it is, whether they agreed, and which adapter answers for them."""

    id: str
    email: str
    ai_provider: str | None = None
    ai_model: str | None = None
    lora_adapter_id: str | None = None
    lora_adapter_path: str | None = None
    adapter_last_trained: datetime | None = None
    adapter_next_training: datetime | None = None
    adapter_auto_retrain: bool = True
    adapter_training_interval: int = 30
    """Days."""
    adapter_training_count: int = 0
    voice_consent_at: datetime | None = None
    sent_count_notified: int = 0
    sent_count_trained: int = 0
    """Sent mails when the last finished training read them."""


class Job(Schema):
    """One row of "FineTuningJob"; the JSON form is what the CLI and the API print."""

    id: str
    user_id: str
    status: JobStatus = JobStatus.PENDING
    stage: Stage | None = None
    progress: float = 0
    """Percent, 0–100."""
    outcome: Outcome | None = None
    trigger: Trigger = Trigger.MANUAL
    version: int
    incremental_from: str | None = None
    training_emails: int | None = None
    base_model: str
    model_name: str | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    metrics: JobMetrics = Field(default_factory=JobMetrics)
    timings: dict[str, float] = Field(default_factory=dict)
    """Seconds per stage."""
    adapter_path: str | None = None
    adapter_size: int | None = None
    """Bytes of the GGUF adapter that is served."""
    adapter_digest: str | None = None
    """`sha256:` + 64 lower-case hex digits of the GGUF adapter."""
    estimated_seconds: float | None = None
    estimated_cost: float | None = None
    actual_cost: float | None = None
    error_code: str | None = None
    error_message: str | None = None
    flow_run_id: str | None = None
    idempotency_key: str | None = None
    cancel_requested: bool = False
    attempts: int = 0
    """Flow runs that have taken the job up."""
    dispatched_at: datetime | None = None
    """When a dispatcher last set out to start the job; a lease, see store/dispatch.py."""
    sent_count: int | None = None
    """The person's sent mails when the data set was made."""
    last_position: int | None = None
    """`Mail.position` of the newest arrival then; later ones are new to the adapter."""
    eta_seconds: float | None = None
    """Seconds of training left, from the measured rate; None before and after training."""
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    updated_at: datetime | None = None


class EventLevel(StrEnum):
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


class JobEvent(Schema):
    """One line of a job's event stream (OpenAI's shape: level, type, message, data)."""

    job_id: str
    at: datetime
    level: EventLevel
    type: str
    """`status`, `message` or `metrics`."""
    message: str
    data: dict[str, Any] = Field(default_factory=dict)


# ---- who is due ------------------------------------------------------------------------------------


class ScanReport(Schema):
    """What one eligibility scan looked at and set off; counts only."""

    accounts: int = 0
    """Mail accounts whose count had grown since the last scan."""
    users: int = 0
    """Their owners; one whose accounts were taken in two batches counts twice."""
    notices: int = 0
    jobs: int = 0
    seconds: float = 0

    @property
    def sentence(self) -> str:
        """The scan for a person."""
        return (
            f"Looked at {self.accounts} accounts with new sent mail, of {self.users} people: "
            f"{self.notices} notices, {self.jobs} jobs, in {self.seconds:.2f} s."
        )


class RetrainEnd(StrEnum):
    """What became of one person in a monthly round."""

    TRAINED = "trained"
    KEPT = "kept"
    NOT_PROVEN = "not proven"
    SKIPPED = "skipped"
    FAILED = "failed"
    CANCELLED = "cancelled"
    RUNNING = "still running"


class RetrainLine(Schema):
    """One person of a monthly round."""

    user_id: str
    job_id: str | None = None
    end: RetrainEnd
    reason: str = ""
    minutes: float = 0
    """From the start of the job's first stage to its end."""
    cost: float = 0
    """US dollars."""


class RetrainReport(Schema):
    """The totals of a monthly round."""

    due: int = 0
    cohorts: int = 0
    trained: int = 0
    kept: int = 0
    not_proven: int = 0
    skipped: int = 0
    failed: int = 0
    cancelled: int = 0
    busy: int = 0
    """Due with a job under way already: left alone, and not among `due`."""
    running: int = 0
    """Not ended when the round stopped waiting; they go on by themselves."""
    minutes: float = 0
    """Sum over the jobs; those of one cohort overlap."""
    cost: float = 0
    """US dollars."""
    seconds: float = 0
    """Of the round itself."""

    @property
    def sentence(self) -> str:
        """The round for a person."""
        left = f" {self.busy} more have a job under way and were left alone." if self.busy else ""
        if self.due == 0:
            return f"Nobody was due.{left}"
        counts = {
            "trained": self.trained,
            "kept": self.kept,
            "not proven": self.not_proven,
            "skipped": self.skipped,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "still running": self.running,
        }
        ends = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        return (
            f"{self.due} due: {ends}. {self.cohorts} cohorts, {self.minutes:.1f} minutes of jobs, "
            f"${self.cost:.2f}, in {self.seconds / 60:.1f} minutes.{left}"
        )


# ---- training --------------------------------------------------------------------------------------


class JobSpec(Schema):
    """`job.json` in the job folder: all that a GPU machine is told about a job. No database, no address."""

    job_id: str
    base_model: str
    version: int
    train_config: dict[str, Any]
    current_adapter: str | None = None
    """Id of the job whose adapter serves the user now, or None; its folder is beside this job's."""
    start_adapter: str | None = None
    """Id of the job whose adapter training starts from (incremental), or None for a fresh one."""


class TrainingProgress(Schema):
    """What a running training says after a step; `progress.json` in the job folder."""

    step: int
    steps: int
    epoch: float
    loss: float
    tokens: int
    tokens_per_second: float
    eta_seconds: float
    phase: str = "train"
    """`load`, `panel`, `train`, `held_out` or `export`."""
    reference: int = 0
    """In the phase `panel`: the reference adapter in work, from 1; `step` and `steps` are its own."""
    references: int = 0
    """How many of them are trained before the job's own adapter: none once the machine has them."""
    seconds: float = 0
    """Seconds of the device since it began with this job: what it is charged for. Of a device that several
    trainers share, each one's part."""


class TrainingResult(Schema):
    """What `training.lora.train_adapter` leaves behind, and where."""

    adapter_dir: str
    steps: int
    epochs: float
    train_tokens: int
    train_seconds: float
    train_tokens_per_second: float
    final_train_loss: float
    loss_curve: tuple[tuple[int, float], ...]
    """(step, training loss) pairs."""
    trainable_parameters: int
    peak_memory_bytes: int
    device: str
    resumed_from_step: int = 0
    earlier_seconds: float = 0
    """Seconds of the device before the process that ended it took over: of `train_seconds`, or the part of
    them that it is charged for where several trainers shared the device."""
    best_step: int = 0
    """The last step that the saved weights have seen; 0: they are those that training began with."""
    averaged_from: int | None = None
    """The saved weights are the mean of the steps after this one, up to `best_step`; None: that step's."""
    stopped_early: bool = False
    stop_reason: str = ""
    """Why training ended where it did and which weights were kept, as a sentence."""
    validation_emails: int = 0
    validation_curve: tuple[tuple[int, float], ...] = ()
    """(step, validation loss) pairs, nat per reply token; step 0 is before the first step."""


class MailLoss(Schema):
    """Held-out loss of one mail under one model."""

    example_id: str
    thread_id: str
    nll: float
    """Mean negative log-likelihood per reply token, nat."""
    tokens: int


class ArmLosses(Schema):
    """Losses per mail under one model (an arm: base, candidate, adapter in use); empty: not measured."""

    held_out: tuple[MailLoss, ...] = ()
    """The person's newest mails, which no arm was trained on."""
    old: tuple[MailLoss, ...] = ()
    """The first run's held-out mails; in retrains only."""
    train: tuple[MailLoss, ...] = ()
    """A sample of the mails that the candidate was trained on."""
    neutral: tuple[MailLoss, ...] = ()
    """The answers of the ten neutral tasks."""
    swapped: tuple[MailLoss, ...] = ()
    """The same answers under another task's prompt."""
    personas: tuple[MailLoss, ...] = ()
    """Held-out mails of the reference panel."""


class MeasuredLosses(Schema):
    """All losses that the gate decides by: the GPU side's part of the evidence."""

    base: ArmLosses
    candidate: ArmLosses
    current: ArmLosses | None = None
    """The adapter in use, `held_out` and `old` only; None: there is none, or it cannot be read."""
    references: dict[str, tuple[MailLoss, ...]] = Field(default_factory=dict)
    """Persona → losses of that persona's adapter on the person's held-out mails."""


class CheckRole(StrEnum):
    """What missing a threshold of the gate does."""

    HARD = "hard"
    """The adapter does not go live."""
    VOTE = "vote"
    """Its metric does not pass; two of the three that vote must."""
    SHOWN = "shown"
    """Nothing: there is too little to measure it by."""


class GateCheck(Schema):
    """One threshold of the gate and what was measured against it."""

    metric: str
    """`skill`, `specificity`, `voice`, `style` or `harm`."""
    name: str
    """camelCase; the key of the value in `GateDecision.numbers`."""
    value: float
    limit: float
    relation: str
    """`>=`, `<=` or `>`: what the value must be to the limit."""
    met: bool
    role: CheckRole
    label: str
    """A few words for a table that a person reads."""


class GateDecision(Schema):
    outcome: Outcome
    reason: str
    """One plain sentence."""
    numbers: dict[str, float] = Field(default_factory=dict)
    checks: tuple[GateCheck, ...] = ()
    """In the order of the metrics."""


class CohortResult(Schema):
    """What train-adapters says about one job of its cohort."""

    job_id: str
    ok: bool
    error_code: str | None = None
    error_message: str | None = None
    seconds: float = 0


# ---- serving ---------------------------------------------------------------------------------------


class ChatMessage(Schema):
    role: str
    content: str


class GenerateOptions(Schema):
    """Sampling settings of one answer; the defaults are the app's own (seeds, Modelfile)."""

    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 40
    seed: int | None = None
    max_tokens: int = 256


class Generated(Schema):
    """One answer of a serving engine."""

    text: str
    stopped: bool
    """It ended by itself, with an end-of-turn token, and not at `max_tokens`."""


class Published(Schema):
    """An adapter that a serving engine holds under an exact name."""

    name: str
    digest: str
    engine: str


class ServedModel(Schema):
    name: str
    digest: str | None = None
    """Digest of the adapter, or None for a base model."""


# ---- rollback and erasure --------------------------------------------------------------------------


class RollbackResult(Schema):
    """What going back to an earlier version changed."""

    user_id: str
    job_id: str
    """The job whose adapter answers now."""
    old_version: int
    old_model: str
    new_version: int
    new_model: str


class EraseResult(StrEnum):
    REMOVED = "removed"
    ABSENT = "absent"
    KEPT = "kept"


class EraseItem(Schema):
    """One thing that was to go. Ids, names and digests only."""

    kind: str
    """`adapter`, `blob`, `job folder`, `instructions`, `reports`, `rows`, `flow runs`, `artifacts`
    or `events`."""
    name: str
    where: str
    """`llamacpp`, `ollama <host>`, `storage`, `home`, `database` or `prefect`."""
    result: EraseResult
    verified: str
    """How it was seen to be gone, or why it stays."""


class EraseReceipt(Schema):
    """The proof of an erasure; written after each step, so that a crash loses none of it."""

    user_id: str
    started_at: datetime
    finished_at: datetime | None = None
    keep_mail: bool = False
    items: tuple[EraseItem, ...] = ()
    complete: bool = False
    """No adapter, file or row is left that was to go; Prefect's records of ids do not count."""


# ---- imports ---------------------------------------------------------------------------------------


class ImportReport(Schema):
    """What an import did; counts only."""

    path: str
    format: str
    read: int
    added: int
    already_present: int
    sent: int
    broken: dict[str, int] = Field(default_factory=dict)
    """Skipped messages by reason."""
    aliases_added: tuple[str, ...] = ()
    hint: str = ""
    seconds: float = 0
