"""`ownvoice compare`: base, current and earlier versions of one person answer the same neutral prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.given_file import read_given
from app.session import Session
from serving.base import Serving
from store import jobs, users
from store import mail as stored_mail
from training.comparison import (
    COMPARED_INSTRUCTIONS,
    JUDGE_INSTRUCTIONS,
    MAX_PROMPT_CHARS,
    MAX_PROMPTS,
    ComparedVersion,
    Comparison,
    OwnMail,
    measure_answers,
    parse_prompts,
    parse_versions,
)
from training.config import load_train_config
from training.dataset import prepare, prompt_messages
from training.errors import ConfigError, OwnvoiceError, ServingError
from training.gate_config import GateConfig, load_gate_config
from training.panel import panel_texts
from training.schemas import Generated, GenerateOptions, Job, Outcome, User

SEED = 7
"""Of the first prompt; the n-th has SEED + n, for every version and every run."""
MOST_JOBS = 10_000
"""More than one person can have: a training takes minutes."""
MOST_VERSIONS = 6
MOST_BYTES = MAX_PROMPTS * (4 * MAX_PROMPT_CHARS + 2)
"""Of a file of prompts: UTF-8 has at most 4 bytes a character."""


@dataclass(frozen=True)
class _Candidates:
    """What of one person may answer beside the base."""

    user: User
    made: dict[int, Job]
    """Judged jobs that were published once, by version."""
    current: Job | None
    base_model: str


def compare_versions(
    session: Session,
    id_or_email: str,
    *,
    versions: str | None = None,
    prompts: Path | None = None,
    scores: bool = True,
    max_tokens: int = 256,
    on_progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Let base and versions answer the prompts, and score the answers against the person's own mail.

    `versions` ("2,3") names them; else it is the version in use and the promoted one before it. The mail is
    read and cleaned as a job does and stays in memory. Raises UnknownUser, ConfigError, ServingUnavailable,
    ServingError, and OwnvoiceError when a version is gone.
    """
    asked = read_prompts(prompts) if prompts is not None else COMPARED_INSTRUCTIONS
    named = parse_versions(versions) if versions is not None else None
    if named and len(named) > MOST_VERSIONS:
        raise ConfigError(f"--versions names {len(named)}; at most {MOST_VERSIONS} fit beside each other.")
    user = users.find_user(session.db, id_or_email)
    found = _candidates(session, user, named)
    own, notice = _own_mail(session, user) if scores else (None, "")
    gate, panel = GateConfig(), tuple[str, ...]()
    if own is not None:
        # Before the answers, which take minutes: the file may be wrong.
        gate = load_gate_config(session.settings.gate)
        panel = panel_texts(gate, (*own.train, *own.held_out))
    judged = JUDGE_INSTRUCTIONS if own is not None else ()
    done = total = 0

    def answers(engine: Serving, name: str | None, instructions: Sequence[str]) -> tuple[Generated, ...]:
        nonlocal done
        given = []
        for number, instruction in enumerate(instructions):
            options = GenerateOptions(seed=SEED + number, max_tokens=max_tokens)
            given.append(engine.generate(name, prompt_messages(instruction), options))
            done += 1
            if on_progress is not None:
                on_progress(done, total)
        return tuple(given)

    with session.serving(found.base_model) as engine:
        chosen = _choose(engine, found, named)
        total = len(asked) * (1 + len(chosen)) + len(judged)
        # One adapter after another: an engine that holds one at a time reloads only between them.
        columns = [ComparedVersion(title="base", answers=answers(engine, None, asked))]
        judged_base = answers(engine, None, judged)
        for job in chosen:
            columns.append(_column(job, found.current, answers(engine, job.model_name, asked)))
    comparison = Comparison(
        user_id=user.id,
        email=user.email,
        base_model=found.base_model,
        max_tokens=max_tokens,
        prompts=tuple(asked),
        seeds=tuple(SEED + number for number in range(len(asked))),
        versions=tuple(columns),
        notice=notice,
    )
    if own is None:
        return comparison
    return measure_answers(comparison, own, judged_base, panel, gate)


def read_prompts(path: Path) -> tuple[str, ...]:
    """Read a file of prompts, one a line. Raises ConfigError with what is wrong, never with its text."""
    hint = f"Give a text file with one prompt a line, at most {MAX_PROMPTS}."
    raw = read_given(path, MOST_BYTES, error=ConfigError, hint=hint)
    if len(raw) > MOST_BYTES:
        raise ConfigError(f"{path} has more than {MOST_BYTES:,} bytes. {hint}")
    try:
        text = raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text. {hint}") from None
    return parse_prompts(text, path.name)


def _own_mail(session: Session, user: User) -> tuple[OwnMail | None, str]:
    """Return the mail that answers are scored against, or why there is none."""
    if user.voice_consent_at is None:
        return None, "No scores: the user has not agreed to voice training, so their mail is not read."
    data = load_train_config(session.settings.train_config).data
    prepared = prepare(stored_mail.fetch_sent_mail(session.db, user.id, data.max_mails), data)
    return OwnMail(prepared.train, prepared.held_out), ""


def _candidates(session: Session, user: User, named: Sequence[int] | None) -> _Candidates:
    """Find what may be compared, before the engine is asked. Raises OwnvoiceError when there is nothing."""
    found = jobs.list_jobs(session.db, user.id, MOST_JOBS)
    made = {job.version: job for job in found if job.model_name and job.outcome}
    current = jobs.current_adapter(session.db, user.id)
    # Versions on another base than this one cannot be shown beside it.
    lead = next((made[version] for version in named or () if version in made), current)
    if lead is None or (named is None and current is None):
        raise OwnvoiceError(
            f"{user.email} has no adapter yet. Train one with `ownvoice train {user.email} --follow`."
        )
    return _Candidates(user, made, current, lead.base_model)


def _choose(engine: Serving, found: _Candidates, named: Sequence[int] | None) -> list[Job]:
    """Return the named versions, or the one in use and the newest before it that the engine has.

    Raises ConfigError (ServingError for the version in use) naming the versions that are left when one of
    them is not on the engine.
    """
    names = {model.name for model in engine.list()}
    served = {
        version: job
        for version, job in found.made.items()
        if job.base_model == found.base_model and job.model_name in names
    }
    if named is not None:
        wanted = list(named)
    else:
        assert found.current is not None
        newest = found.current.version
        # A refused version that an engine still holds is compared only when somebody names it.
        earlier = [v for v, job in served.items() if v < newest and job.outcome is Outcome.PROMOTED]
        wanted = [newest, *sorted(earlier)[-1:]]
    gone = [version for version in wanted if version not in served]
    if gone:
        left = ", ".join(map(str, sorted(served))) or "none; `ownvoice train` makes one"
        raise (ServingError if named is None else ConfigError)(
            f"Version {gone[0]} of {found.user.email} is not on the engine ({engine.engine}, base model "
            f"{found.base_model}). Versions that can be compared: {left}."
        )
    return [served[version] for version in wanted]


def _column(job: Job, current: Job | None, answers: tuple[Generated, ...]) -> ComparedVersion:
    in_use = current is not None and current.id == job.id
    return ComparedVersion(
        title=f"version {job.version}" + (" (in use)" if in_use else ""),
        version=job.version,
        model=job.model_name,
        current=in_use,
        outcome=job.outcome,
        decision=job.metrics.decision,
        answers=answers,
    )
