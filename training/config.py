"""Training presets: YAML in `configs/train/`, frozen and strict once loaded.

A preset says everything that decides what an adapter becomes; nothing here touches torch. Unknown keys are
refused, so that a misspelt `lora_alhpa` fails before an hour of training and not after it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from training.errors import ConfigError
from training.schemas import RetrainMode

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

NOT_IN_RECIPE = {"name", "checkpoint_every_s", "checkpoint_every_steps", "auto", "chosen"}
"""Fields of a preset that do not change what an adapter becomes; of what was chosen, the numbers do."""
RETIRED = {"promote_below"}
"""Fields of earlier versions that rows of jobs still hold: the gate's thresholds have their own file now."""
AUTO = "auto"
AutoField = Literal[
    "epochs", "learning_rate", "validation_fraction", "lora.rank", "lora.alpha", "lora.dropout"
]
"""Fields that a preset may leave to the data."""
Settings = TypeVar("Settings", bound=BaseModel)


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(_Config):
    """Which mails become examples, and how many are held out."""

    max_mails: int = Field(default=500, ge=1, le=5000)
    """Sent mails that are read: the newest, or what the mode of a retrain chooses (seeds: 100–500)."""
    min_usable: int = Field(default=100, ge=10)
    """Usable mails below which training is refused (seeds: 100 sent mails)."""
    min_usable_new: int = Field(default=30, ge=4)
    """New usable mails below which an incremental retrain is refused: what cleaning keeps of the seeds' 50
    new sent mails (median 33.5, quartiles 29 and 38, over 60 windows of 50 of eleven mailboxes)."""
    min_words: int = Field(default=8, ge=1)
    """Own words below which a mail teaches nothing (Panza drops < 10; real one-liners start at 8)."""
    max_words: int = Field(default=2000, ge=50)
    """Own words above which a text is a document, not a mail."""
    language: str | None = Field(default=None, pattern=r"^[a-z]{2}$")
    """ISO 639-1 code to keep, or None for the mailbox's own main languages."""
    max_context_words: int = Field(default=120, ge=0)
    """Words of the answered message that are shown to the model."""
    mask_third_persons: bool = True
    """Leave names, addresses and telephone numbers of other people out of the training loss
    (training/mail/third_persons.py). Held-out loss counts every token either way, so that both compare."""
    instructions: Literal["subject", "playback"] = "subject"
    """What stands in a prompt for the request that a mail answers: `subject` its subject line; `playback`
    what the base model says the mail was asked to do (training/playback.py), one answer for each mail."""
    held_out_fraction: float = Field(default=0.15, gt=0, lt=0.5)
    """Newest share of the examples that is never trained on (references/voice.md §3)."""
    min_held_out: int = Field(default=20, ge=1)
    max_held_out: int = Field(default=60, ge=1)

    @model_validator(mode="after")
    def _held_out_range(self) -> DataConfig:
        if self.min_held_out > self.max_held_out:
            raise ValueError(
                f"min_held_out {self.min_held_out} is above max_held_out {self.max_held_out}; lower it"
            )
        return self


class LoraConfig(_Config):
    """The adapter's shape. Defaults: the owner's `lora-config-8b.yaml`."""

    rank: int = Field(default=16, ge=1, le=256)
    alpha: float = Field(default=32, gt=0)
    """Scale is alpha / rank, or alpha / sqrt(rank) with rsLoRA (Kalajdzievski 2023, eq. 8)."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    target_modules: tuple[str, ...] = LINEAR_LAYERS
    use_rslora: bool = False
    use_dora: bool = False
    """Refused when true; here so that the answer is a reason and not "unknown key"."""

    @field_validator("use_dora")
    @classmethod
    def _no_dora(cls, value: bool) -> bool:
        if value:
            raise ValueError(
                "a GGUF adapter cannot carry DoRA's magnitudes, and every serving engine takes GGUF; set it "
                "to false (use_rslora is the option that can be served)"
            )
        return value

    @model_validator(mode="after")
    def _known_modules(self) -> LoraConfig:
        unknown = set(self.target_modules) - set(LINEAR_LAYERS)
        if unknown or not self.target_modules:
            raise ValueError(
                f"target_modules {sorted(unknown)} cannot be carried by a GGUF adapter; "
                f"choose from {', '.join(LINEAR_LAYERS)}"
            )
        return self


class Choice(_Config):
    """What was chosen from a person's mail in the place of `auto`."""

    fields: tuple[AutoField, ...]
    reason: str
    """One sentence with the values and the counts that they follow from."""


class TrainConfig(_Config):
    """One preset. Defaults: the adapter of the owner's documents at the rate that measured best; their own
    settings are the preset `seeds`.

    A field of `AutoField` may be `auto`: then `auto` lists it, and it holds its default until
    `training.choose.choose` has seen the mail. So every field is a number for all who only read it.
    """

    name: str = "default"
    base_model: str | None = None
    """Key in configs/base_models.yaml that this preset is made for; None fits any."""
    data: DataConfig = DataConfig()
    lora: LoraConfig = LoraConfig()
    mode: RetrainMode = RetrainMode.REPLAY
    """From what a retrain learns; a first training has nothing to replay or to continue."""
    epochs: int = Field(default=3, ge=1, le=50)
    learning_rate: float = Field(default=1e-3, gt=0, lt=1)
    """Peak. 1e-3 with an early stop beat the owner's 2e-4 on all three mailboxes tried, by 0.06–0.10 nat
    (references/training.md §3)."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_seq_tokens: int = Field(default=1024, ge=64)
    """Longer prompts lose the middle, where the answered message stands; longer replies lose their end."""
    batch_tokens: int = Field(default=704, ge=64)
    """Tokens of prompts and replies per optimiser step: 8 mails of david's mean length, the usual batch size.
    One core, beside other work: 537, 592 and 567 tokens per second of processor at 544, 704 and 1,024."""
    packing: bool = False
    """False: mails of similar lengths share a batch; true: mails of any length, as chance has it. Rows are
    ragged and no mail ever sees another one either way."""
    neftune_noise_alpha: float = 0
    """Refused unless 0: NEFTune (Jain et al. 2023) is off."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto`: bf16, or fp32 on a processor that would have to emulate it (training/precision.py); settled on
    the machine that trains and recorded in the recipe."""
    quantise: Literal["none", "nf4"] = "none"
    """`nf4`: 4-bit base weights by bitsandbytes (QLoRA, Dettmers et al. 2023); for bases that do not fit."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Compute activations again in the backward pass instead of keeping them (Chen et al. 2016): about a
    third slower. `auto`: only where the training does not fit in memory without (training/memory.py)."""
    optimiser: Literal["adamw", "paged_adamw_8bit"] = "adamw"
    """`paged_adamw_8bit`: moments of 8 bits by bitsandbytes, moved to the CPU's memory when a GPU is full. It
    trains another adapter, so it is never chosen for you."""
    validation_fraction: float = Field(default=0.1, ge=0, le=0.25)
    """Share of the training examples, in whole threads spread over their time, that is only looked at: to
    stop in time and to keep the best weights; 0 switches it off. It costs its share of the examples and
    about a thirtieth of the time: a look is one forward pass, a third of a step's work, over a tenth of the
    mails."""
    min_validation: int = Field(default=12, ge=1)
    """Mails below which there is no validation slice: a mean over fewer says more about them than about the
    adapter. It never takes more than a quarter of the examples, so 48 are the fewest that have one."""
    patience: int = Field(default=1, ge=1)
    """Looks in a row that may bring no improvement before training ends."""
    average_from: float | None = Field(default=0.25, ge=0, lt=1)
    """Share of the steps after which the mean of the weights begins that is looked at last and saved when the
    slice finds it better than every single step; null: only single steps are saved. Without a slice nothing
    can be said for the mean, and the last step is saved."""
    min_delta: float = Field(default=0.005, ge=0)
    """Nat per reply token below which a lower validation loss counts as no improvement."""
    seed: int = 17
    checkpoint_every_s: float = Field(default=20.0, gt=0)
    """Seconds of training that a crash may lose."""
    checkpoint_every_steps: int | None = Field(default=None, ge=1)
    """Steps that a crash may lose; whichever limit comes first counts."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after so many optimiser steps (smoke tests)."""
    auto: tuple[AutoField, ...] = ()
    """Fields still to be chosen from the mail."""
    chosen: Choice | None = None
    """What was chosen, in the configuration that a job keeps: the same numbers again in a retry."""

    @model_validator(mode="before")
    @classmethod
    def _note_auto(cls, data: Any) -> Any:
        return _auto_to_list(data) if isinstance(data, dict) else data

    @field_validator("neftune_noise_alpha")
    @classmethod
    def _no_neftune(cls, value: float) -> float:
        if value:
            raise ValueError(
                "NEFTune is off: its noise on the embeddings was made for longer chat answers, not for one "
                "person's words, and no gain on mail was measured; set it to 0"
            )
        return value


def load_train_config(name_or_path: str, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """Load a preset by name (`configs/train/<name>.yaml`) or by path, then apply `overrides`.

    An override of one field of a section (`{"lora": {"rank": 8}}`) keeps the section's other fields.

    Raises ConfigError naming the file, the field and what is allowed.
    """
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = CONFIGS / "train" / f"{name_or_path}.yaml"
    try:
        data = read_settings(path, like="configs/train/default.yaml")
    except ConfigError as exc:
        if not isinstance(exc.__cause__, FileNotFoundError):
            raise
        if os.path.isdir(name_or_path):
            raise ConfigError(
                f"{_short(name_or_path)} is a folder. Give a YAML file in it, or the name of a preset."
            ) from exc
        known = ", ".join(sorted(p.stem for p in (CONFIGS / "train").glob("*.yaml")))
        raise ConfigError(
            f"There is no training preset {_short(name_or_path)}. Choose one of: {known}."
        ) from exc
    return parse_settings(TrainConfig, _merge({"name": path.stem, **data}, overrides or {}), path.name)


def parse_train_config(data: dict[str, Any], *, source: str = "the training configuration") -> TrainConfig:
    """Validate a preset that is already a mapping, as rows of jobs hold it. Raises ConfigError."""
    return parse_settings(TrainConfig, {k: v for k, v in data.items() if k not in RETIRED}, source)


def read_settings(path: Path, *, like: str) -> dict[str, Any]:
    """Read a YAML file of `key: value` lines; `like` names one to compare with.

    Raises ConfigError; its cause is a FileNotFoundError when there is no file of that name.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as exc:
        # A name that no file system takes (300 letters, a NUL byte) is the name of no file.
        too_odd = not isinstance(exc, OSError) or exc.errno == errno.ENAMETOOLONG
        cause = FileNotFoundError(*exc.args) if too_odd else exc
        raise ConfigError(_unreadable(path, cause, like)) from cause
    try:
        data = yaml.safe_load(content.decode("utf-8")) or {}
    # ValueError: bytes that are not UTF-8, and dates as 2026-13-45; RecursionError: a thousand brackets.
    except (ValueError, RecursionError, yaml.YAMLError) as exc:
        raise ConfigError(f"{path.name} is not readable YAML. Correct the file and run again.") from exc
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name} must hold `key: value` lines, as {like} does.")
    return data


def _unreadable(path: Path, exc: Exception, like: str) -> str:
    """Return why a file of settings could not be opened, and what to do."""
    name = _short(str(path))
    if isinstance(exc, FileNotFoundError):
        return f"There is no file {name}. Give the path of a YAML file like {like}."
    if isinstance(exc, IsADirectoryError):
        return f"{name} is a folder, not a file. Give the path of a YAML file like {like}."
    why = exc.strerror if isinstance(exc, OSError) else type(exc).__name__
    return f"{name} cannot be read ({why}). Correct that, or give another file."


def _short(name: str) -> str:
    """Return a name in quotes for a message: whole, or its first 120 characters."""
    return repr(name if len(name) <= 120 else f"{name[:120]}…")


def parse_settings(kind: type[Settings], data: dict[str, Any], source: str) -> Settings:
    """Validate a mapping as `kind`. Raises ConfigError naming the source, the field and what is allowed."""
    try:
        return kind.model_validate(data)
    except ValidationError as exc:
        problem = exc.errors()[0]
        field = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        raise ConfigError(
            f"{source}: {field}: {_sentence_of(problem['msg'])} (value: {problem.get('input')!r:.60})."
        ) from exc


def _auto_to_list(data: dict[str, Any]) -> dict[str, Any]:
    """Return `data` with its `auto` values taken out and listed under `auto`, in the order of AutoField.

    A rank that is chosen brings its alpha along, unless the preset has a number for that.
    """
    lora = data.get("lora")
    inner = dict(lora) if isinstance(lora, dict) else {}
    sections: dict[str, dict[str, Any]] = {"": dict(data), "lora": inner}
    listed = data.get("auto") or ()
    found = set(listed) if isinstance(listed, list | tuple) else set()
    for field in get_args(AutoField):
        section, _, name = field.rpartition(".")
        if sections[section].get(name) == AUTO:
            del sections[section][name]
            found.add(field)
    if "lora.rank" in found and "alpha" not in inner:
        found.add("lora.alpha")
    if not found:
        return data
    known = [field for field in get_args(AutoField) if field in found]
    # What is no such field stays, to be refused by its name.
    merged = {**sections[""], "auto": [*known, *sorted(map(str, found.difference(known)))]}
    return {**merged, "lora": inner} if isinstance(lora, dict) else merged


def _sentence_of(message: str) -> str:
    """Return pydantic's message without the kind of error that it puts before our own sentences."""
    return message.removeprefix("Value error, ").removeprefix("Assertion failed, ")


def _merge(data: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return `data` with `overrides` laid over it, section by section."""
    merged = dict(data)
    for key, value in overrides.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
