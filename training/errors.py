"""Every error that Ownvoice raises on purpose.

    OwnvoiceError               a sentence for a person: the value, the limit, the next step
    ├── NotEnoughMail           the mailbox holds too few usable mails of the user's own
    ├── NoConsent               the user has not agreed to have a voice trained
    ├── ConfigError             a setting, a YAML file or an argument is wrong
    ├── NotEnoughMemory         the device cannot hold the training (`needed_bytes`, `free_bytes`)
    ├── UnreadableMailbox       the import source cannot be read at all
    ├── UnknownUser             no user with that id or address
    ├── UnknownJob              no job with that id
    ├── JobAlreadyActive        the user has a job that has not ended (`job_id`)
    ├── InvalidTransition       the job is not in a status that allows this
    ├── TrainingDiverged        the loss became NaN, exploded or never moved (`step`, `loss`)
    ├── TrainingCancelled       somebody asked for the job to stop
    ├── TrainerDied             one of several processes that train a cohort was killed
    ├── StoreError              PostgreSQL refused (wraps psycopg)
    │   └── StoreUnavailable    it does not answer: retry
    ├── StorageError            the job folder cannot be read or written
    ├── OrchestratorUnavailable the Prefect server does not answer
    ├── ServingUnavailable      the serving engine does not answer or is busy: retry
    ├── ServingError            the serving engine answered something it should not
    │   └── ContextExceeded     a prompt or an answer does not fit into its context
    └── AdapterRefused          the serving engine will never take this adapter: final

Messages never hold mail text. `code` is stable and goes into "FineTuningJob"."errorCode";
`exit_code` is what the command line ends with (1 failed, 2 usage, 3 refused).
"""

from __future__ import annotations


class OwnvoiceError(Exception):
    """Base of all errors that are meant for a person."""

    code: str = "FAILED"
    exit_code: int = 1


class NotEnoughMail(OwnvoiceError):
    """Too few usable mails: `found` of `needed`."""

    code = "NOT_ENOUGH_MAIL"
    exit_code = 3

    def __init__(self, message: str, *, found: int, needed: int) -> None:
        super().__init__(message)
        self.found = found
        self.needed = needed


class NoConsent(OwnvoiceError):
    code = "NO_CONSENT"
    exit_code = 3


class ConfigError(OwnvoiceError):
    code = "CONFIG"
    exit_code = 2


class NotEnoughMemory(OwnvoiceError):
    """The device has `free_bytes` and the training needs `needed_bytes`."""

    code = "NOT_ENOUGH_MEMORY"

    def __init__(self, message: str, *, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class UnreadableMailbox(OwnvoiceError):
    code = "UNREADABLE_MAILBOX"


class UnknownUser(OwnvoiceError):
    code = "UNKNOWN_USER"
    exit_code = 2


class UnknownJob(OwnvoiceError):
    code = "UNKNOWN_JOB"
    exit_code = 2


class JobAlreadyActive(OwnvoiceError):
    code = "JOB_ALREADY_ACTIVE"
    exit_code = 3

    def __init__(self, message: str, *, job_id: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class InvalidTransition(OwnvoiceError):
    code = "INVALID_TRANSITION"
    exit_code = 3


class TrainingDiverged(OwnvoiceError):
    code = "TRAINING_DIVERGED"

    def __init__(self, message: str, *, step: int, loss: float) -> None:
        super().__init__(message)
        self.step = step
        self.loss = loss


class TrainingCancelled(OwnvoiceError):
    code = "CANCELLED"


class TrainerDied(OwnvoiceError):
    """One of several processes that train a cohort was killed: the jobs left go on from their checkpoints."""

    code = "TRAINING_CRASHED"


class StoreError(OwnvoiceError):
    code = "STORE"


class StoreUnavailable(StoreError):
    code = "STORE_UNAVAILABLE"


class StorageError(OwnvoiceError):
    code = "STORAGE"


class OrchestratorUnavailable(OwnvoiceError):
    code = "ORCHESTRATOR_UNAVAILABLE"


class ServingUnavailable(OwnvoiceError):
    code = "SERVING_UNAVAILABLE"


class ServingError(OwnvoiceError):
    code = "SERVING"


class ContextExceeded(ServingError):
    """This prompt is too long for the engine; another one may fit."""


class AdapterRefused(OwnvoiceError):
    code = "ADAPTER_REFUSED"
