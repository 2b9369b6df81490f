"""`ownvoice doctor`: what is missing on this machine, and the command that brings it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple
from urllib.parse import urlsplit

from app import local
from app.session import Session
from store.database import open_database, pending_migrations
from training.allocator import INSTALL, find_allocator
from training.base_models import find_base_model
from training.config import load_train_config
from training.errors import NotEnoughMemory, OwnvoiceError
from training.machine_memory import free_machine_bytes
from training.memory import fit_memory
from training.settings import PROJECT_ROOT

FREE_DISK_GB = 2.0
"""Materialised base (0.3 GB), database, a few jobs with checkpoints (60 MB each)."""


class Finding(NamedTuple):
    """One check. `remedy` is the command or step that mends it, empty when all is well."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def examine(session: Session) -> Iterator[Finding]:
    """Yield one finding after another; never raises for what it examines."""
    checks: list[tuple[str, Callable[[Session], Finding]]] = [
        ("python", _python),
        ("packages", _packages),
        ("settings", _settings),
        ("memory", _memory),
        ("allocator", _allocator),
        ("disk", _disk),
        ("base model", _base_model),
        ("database", _database),
        ("prefect server", _prefect),
        ("serving engine", _serving),
        ("webhooks", _webhooks),
    ]
    for name, check in checks:
        try:
            yield check(session)
        except OwnvoiceError as exc:
            yield Finding(name, False, str(exc))  # the sentence names the next step
        except Exception as exc:
            yield Finding(name, False, f"could not be examined ({type(exc).__name__})", "report this")


def _python(session: Session) -> Finding:
    found = sys.version.split()[0]
    return Finding(
        "python",
        sys.version_info >= (3, 11),
        found,
        "" if sys.version_info >= (3, 11) else "make clean setup PYTHON=python3.11",
    )


def _packages(session: Session) -> Finding:
    wrong = []
    for line in (PROJECT_ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name, _, wanted = line.partition("==")
        if not wanted or name.startswith("#"):
            continue
        try:
            found = version(name).split("+")[0]
        except PackageNotFoundError:
            continue  # developers' tools may be left out
        if found != wanted:
            wrong.append(f"{name} {found} (tested: {wanted})")
    detail = (
        f"{len(wrong)} differ from constraints.txt: {', '.join(wrong[:4])}" if wrong else "the tested set"
    )
    return Finding("packages", not wrong, detail, "make setup" if wrong else "")


def _settings(session: Session) -> Finding:
    settings = session.settings
    return Finding(
        "settings", True, f"home {settings.home}, base {settings.base_model}, serving {settings.engine}"
    )


def _memory(session: Session) -> Finding:
    """This machine's memory; a GPU's is compared by the training itself, on the machine that has it."""
    config = load_train_config(session.settings.train_config)
    base = find_base_model(config.base_model or session.settings.base_model)
    free = free_machine_bytes()
    try:
        plan = fit_memory(base.dimensions, config, [free], kind="cpu", base_model=base.id)
    except NotEnoughMemory as exc:
        return Finding(
            "memory", False, str(exc), "close other programs, or choose a smaller OWNVOICE_BASE_MODEL"
        )
    return Finding(
        "memory",
        True,
        f"{free / 1e9:.1f} GB free, training {base.id} with {config.name} needs {plan.total / 1e9:.1f} GB",
    )


def _allocator(session: Session) -> Finding:
    """Training works with any; nothing is missing without the faster one."""
    found = find_allocator()
    hint = f"; training on a processor is about a fifth faster after `{INSTALL}`"
    detail = f"{found}, for training processes" if found else "the system's"
    return Finding("allocator", True, detail if found or sys.platform != "linux" else detail + hint)


def _disk(session: Session) -> Finding:
    home = session.settings.home
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 1e9
    return Finding(
        "disk",
        free >= FREE_DISK_GB,
        f"{free:.1f} GB free, {FREE_DISK_GB:g} GB needed",
        "" if free >= FREE_DISK_GB else "free space, or set OWNVOICE_HOME to another disk",
    )


def _base_model(session: Session) -> Finding:
    base = find_base_model(session.settings.base_model)
    path = base.gguf_path
    return Finding("base model", True, f"{base.title}, {path.name if path else base.hf_id}")


def _database(session: Session) -> Finding:
    settings = session.settings
    with open_database(
        local.database_url(settings), sent_column=settings.sent_column, max_connections=2
    ) as db:
        pending = pending_migrations(db)
        where = db.address
    detail = f"{where}, {len(pending)} migrations pending" if pending else f"{where}, up to date"
    return Finding("database", not pending, detail, "ownvoice db upgrade" if pending else "")


def _prefect(session: Session) -> Finding:
    orchestrator = session.orchestrator
    return Finding("prefect server", True, orchestrator.api_url)


def _webhooks(session: Session) -> Finding:
    url, key = session.settings.webhook_url, session.settings.internal_api_key
    if url is None:
        return Finding("webhooks", True, "off: FINE_TUNING_WEBHOOK_URL is not set")
    host = urlsplit(url).hostname  # the rest of the URL may be secret
    if key is None:
        return Finding(
            "webhooks",
            False,
            f"none is sent to {host}: they are never unsigned, and INTERNAL_API_KEY is not set",
            "set INTERNAL_API_KEY to the key that the app verifies with (deployments/WEBHOOKS.md)",
        )
    return Finding("webhooks", True, f"to {host}, signed with INTERNAL_API_KEY")


def _serving(session: Session) -> Finding:
    with session.serving(session.settings.base_model) as engine:
        engine.base_ready()
        return Finding("serving engine", True, f"{engine.engine} has the base model")
