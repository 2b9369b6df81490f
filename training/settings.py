"""Everything the environment decides: addresses, secrets, folders. One class, read once per process.

The variable names of the owner's documents are kept (`DATABASE_URL`, `OLLAMA_BASE_URL`,
`INTERNAL_API_KEY`, `FINE_TUNING_WEBHOOK_URL`, `VASTAI_API_KEY`); ours start with `OWNVOICE_`.
With nothing set, every part runs embedded on this machine.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import available_timezones

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from training.errors import ConfigError

if TYPE_CHECKING:
    from training.base_models import BaseModel

PROJECT_ROOT = Path(__file__).resolve().parent.parent
SHORTEST_ZOMBIE_S = 60
"""Two of the shortest heartbeats (30 s) that Prefect allows."""


def _names(*names: str) -> AliasChoices:
    return AliasChoices(*names)


class Settings(BaseSettings):
    """Where things are. `load_settings()` is the only constructor that other code calls."""

    # An unusable value is not quoted in the error that is kept as cause: it may hold a password.
    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    home: Path = Field(PROJECT_ROOT / ".ownvoice", validation_alias=_names("OWNVOICE_HOME"))
    """Folder of everything embedded: database, storage, adapters, logs."""
    database_url: SecretStr | None = Field(None, validation_alias=_names("DATABASE_URL"))
    """PostgreSQL URL; unset means the embedded server in `home`."""
    prefect_api_url: str | None = Field(None, validation_alias=_names("PREFECT_API_URL"))
    """Prefect server; unset means the one that `ownvoice up` started."""
    prefect_api_auth_string: SecretStr | None = Field(
        None, validation_alias=_names("PREFECT_API_AUTH_STRING")
    )
    """`user:password` of a Prefect server that asks for it."""
    serving: Literal["ollama", "llamacpp"] | None = Field(None, validation_alias=_names("OWNVOICE_SERVING"))
    """Engine; unset means ollama when `OLLAMA_BASE_URL` is set, else llamacpp."""
    ollama_base_url: str | None = Field(None, validation_alias=_names("OLLAMA_BASE_URL"))
    """Ollama server; a trailing `/api`, as in the owner's documents, is accepted."""
    ollama_base: str | None = Field(None, validation_alias=_names("OWNVOICE_OLLAMA_BASE"))
    """Name of the base model on the Ollama server; unset means the one in configs/base_models.yaml."""
    storage_url: str | None = Field(None, validation_alias=_names("OWNVOICE_STORAGE_URL"))
    """fsspec URL of the job folders; unset means `home`/storage."""
    base_model: str = Field("smollm2-135m", validation_alias=_names("OWNVOICE_BASE_MODEL"))
    """Key in configs/base_models.yaml that new jobs train on."""
    train_config: str = Field("default", validation_alias=_names("OWNVOICE_TRAIN_CONFIG"))
    """Preset in configs/train/ (without .yaml) for new jobs."""
    gate: Path = Field(PROJECT_ROOT / "configs" / "gate.yaml", validation_alias=_names("OWNVOICE_GATE"))
    """YAML file of the gate's thresholds."""
    hourly_price: float = Field(0.0, ge=0, validation_alias=_names("OWNVOICE_HOURLY_PRICE"))
    """US dollars per training hour, for estimates and costs; 0 on the own machine."""
    serving_wait_s: float = Field(60.0, ge=0, validation_alias=_names("OWNVOICE_SERVING_WAIT_S"))
    """Seconds for which a job retries a serving engine that does not answer."""
    cohort_size: int = Field(8, ge=1, le=64, validation_alias=_names("OWNVOICE_COHORT_SIZE"))
    """Most jobs that share one loaded base model in one GPU run."""
    trainers: int | None = Field(None, ge=1, le=64, validation_alias=_names("OWNVOICE_TRAINERS"))
    """Single-threaded processes that train a cohort on CPU; 1: one process with a thread per core. Unset:
    one per core when there are more jobs than cores."""
    timezone: str = Field("UTC", validation_alias=_names("OWNVOICE_TIMEZONE"))
    """IANA time zone of the daily schedules (prefect.yaml), for example Europe/Berlin."""
    zombie_after_s: float = Field(
        540.0, ge=SHORTEST_ZOMBIE_S, validation_alias=_names("OWNVOICE_ZOMBIE_AFTER_S")
    )
    """Seconds without a heartbeat after which a flow run counts as crashed: three times Prefect's default
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY, as its page on zombie flows does, so that one lost heartbeat never
    kills a good run."""
    database_wait_s: float = Field(90.0, ge=0, validation_alias=_names("OWNVOICE_DATABASE_WAIT_S"))
    """Seconds for which a running job waits for a PostgreSQL that does not answer."""
    sent_column: str = Field("isSent", validation_alias=_names("OWNVOICE_SENT_COLUMN"))
    """Column of "EmailMessage" that flags sent mail (the upstream app names it `sent`)."""
    cpu_pool: str = Field("cpu", validation_alias=_names("OWNVOICE_CPU_POOL"))
    gpu_pool: str = Field("gpu", validation_alias=_names("OWNVOICE_GPU_POOL"))
    internal_api_key: SecretStr | None = Field(None, validation_alias=_names("INTERNAL_API_KEY"))
    """Key that the app and Ownvoice share; webhooks are signed with it (deployments/WEBHOOKS.md)."""
    webhook_url: str | None = Field(None, repr=False, validation_alias=_names("FINE_TUNING_WEBHOOK_URL"))
    """Where the app hears what becomes of jobs; unset means nowhere. Not printed: it may hold a password."""
    vastai_api_key: SecretStr | None = Field(None, validation_alias=_names("VASTAI_API_KEY"))

    @property
    def engine(self) -> Literal["ollama", "llamacpp"]:
        return self.serving or ("ollama" if self.ollama_base_url else "llamacpp")

    @property
    def storage(self) -> str:
        return self.storage_url or (self.home / "storage").as_posix()

    @field_validator("home", "gate")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        """Workers run in another folder: a relative home would be another one there."""
        return home.expanduser().resolve()

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        # A slim container without tzdata knows none, and UTC needs none.
        if name != "UTC" and name not in available_timezones():
            raise ValueError(f"{name!r} is no IANA time zone like Europe/Berlin")
        return name

    @field_validator("internal_api_key", "webhook_url", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any) -> Any:
        """Compose files pass variables on as empty strings; an empty key would sign nothing."""
        return None if isinstance(value, str) and not value.strip() else value

    @field_validator("webhook_url")
    @classmethod
    def _http_address(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url.strip())
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:  # a port that is no number, half an IPv6 address
            good = False
        if not good:
            raise ValueError("it must look like https://app.example.org/api/webhooks/fine-tuning")
        return url.strip()

    def serving_options(self, base: BaseModel) -> dict[str, Any]:
        """Return the arguments of `serving.engines.open_serving` for one base model. Raises ConfigError."""
        return {
            "engine": self.engine,
            "base_gguf": base.gguf_path,
            "adapters_dir": self.adapters,
            "ollama_url": self.ollama_base_url,
            "ollama_base": self.ollama_base or base.ollama_name,
            "ollama_template": base.ollama_template,
            "architecture": base.architecture,
            "num_ctx": base.context_tokens,
        }

    @property
    def serving_limit(self) -> str | None:
        """Name of the Prefect concurrency limit (1) that serialises changes of the Ollama server's models.

        None for the embedded engine, which has no server. deployments/register.py makes the limit; tasks
        hold it with `prefect.concurrency.sync.concurrency`. Prefect refuses `/ % & < >` in the name.
        Raises: ConfigError when OLLAMA_BASE_URL is not an address.
        """
        if self.engine != "ollama" or not self.ollama_base_url:
            return None
        url = self.ollama_base_url.strip()
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port or {"https": 443}.get(parts.scheme, 80)
        except ValueError as exc:
            raise ConfigError(
                "OLLAMA_BASE_URL is not an address like http://127.0.0.1:11434. Correct it."
            ) from exc
        host = re.sub(r"[^a-z0-9.:_-]", "-", (parts.hostname or "").lower())
        return f"ollama:{host}:{port}"

    @property
    def cache(self) -> Path:
        """Folder of materialised base models; safe to delete."""
        return self.home / "cache"

    @property
    def adapters(self) -> Path:
        """Folder of the llamacpp engine's published adapters."""
        return self.home / "adapters"

    @property
    def reports(self) -> Path:
        """Folder of the pages that `ownvoice compare` wrote; one below it per person, by `voice_name`."""
        return self.home / "reports"


def enter_project_root() -> dict[str, str]:
    """Make the repository root the working directory; the pull step of every deployment (prefect.yaml)."""
    os.chdir(PROJECT_ROOT)
    return {"directory": str(PROJECT_ROOT)}


def load_settings() -> Settings:
    """Read the environment. Raises ConfigError naming the variable and what it must look like."""
    # A GPU worker is started with OWNVOICE_ENV_FILE empty: a file with DATABASE_URL must not reach it.
    named = os.environ.get("OWNVOICE_ENV_FILE")
    # Skipped in silence, a file that was asked for would send a job to an embedded, empty database. Docker
    # makes a folder of a file to mount that is missing on its host.
    if named and not (Path(named).is_file() and os.access(named, os.R_OK)):
        raise ConfigError(
            f"OWNVOICE_ENV_FILE names {named}, which is not a file that user {os.geteuid()} can read. Put it "
            "there (for a container: on the worker's host, owned by that user), or unset the variable."
        )
    try:
        return Settings(_env_file=(".env" if named is None else named) or None)  # type: ignore[call-arg]
    except ValidationError as exc:
        first = exc.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{name} is not usable: {first['msg']}. Correct the variable and run again."
        ) from exc
