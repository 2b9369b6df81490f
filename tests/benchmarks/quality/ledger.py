"""Finished runs, one JSON line each: nothing is trained twice, and an interrupted measurement goes on.

A line holds numbers and settings only: no mail, no subject, no thread id.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.config import TrainConfig, load_train_config
from training.settings import PROJECT_ROOT

MEASURED_CODE = (
    "training",
    "store/mail.py",
    "tasks/training_mail.py",
    "configs/base_models.yaml",
    "configs/train/default.yaml",
)
"""What decides a result; the rest of the repository may change without anything being measured again."""


@dataclass(frozen=True)
class Run:
    """One thing to measure. Two sections that ask for the same run share its result."""

    kind: str
    """What is measured: a name in `measure.KINDS`."""
    mailbox: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the preset `default`, as `load_train_config` takes it."""

    @property
    def config(self) -> TrainConfig:
        return load_train_config("default", dict(self.settings))

    def key(self, code: str) -> str:
        """Return the digest of everything that decides the result; `code` is `code_version()`."""
        what = [code, self.kind, self.mailbox, dict(self.settings)]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


class Ledger:
    """The file of finished runs, for one version of the measured code.

    `commit` is noted with every run that is added.
    """

    def __init__(self, file: Path, code: str, commit: str | None = None) -> None:
        self._file = file
        self._code = code
        self._commit = commit
        self._found: dict[str, dict[str, Any]] = {}
        self._commits: dict[str, str | None] = {}
        if file.is_file():
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the last line of a run that was killed while writing
                key = Run(row["kind"], row["mailbox"], row["settings"]).key(row["code"])
                self._found[key], self._commits[key] = row["result"], row.get("commit")

    def find(self, run: Run) -> dict[str, Any] | None:
        """Return the result of a finished run, None when it has not been done with this code."""
        return self._found.get(run.key(self._code))

    def missing(self, runs: Iterable[Run]) -> list[Run]:
        """Return the runs that are still to be done, each once, in their order."""
        wanted = {run.key(self._code): run for run in runs}
        return [run for key, run in wanted.items() if key not in self._found]

    def commits(self, runs: Iterable[Run]) -> list[str]:
        """Return the commits at which those of the runs that are finished were made."""
        found = {self._commits.get(run.key(self._code)) for run in runs}
        return sorted(commit for commit in found if commit)

    def add(self, run: Run, result: dict[str, Any]) -> None:
        """Keep a result, at once on disk."""
        key = run.key(self._code)
        self._found[key], self._commits[key] = result, self._commit
        self._file.parent.mkdir(parents=True, exist_ok=True)
        row = {
            "code": self._code,
            "commit": self._commit,
            "kind": run.kind,
            "mailbox": run.mailbox,
            "settings": run.settings,
            "result": result,
        }
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")


def code_version() -> str:
    """Return a digest of the files in MEASURED_CODE as they are on disk, committed or not."""
    digest = hashlib.sha256()
    listed = subprocess.run(
        ["git", "ls-files", "-z", *MEASURED_CODE],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in sorted(filter(None, listed.stdout.split("\0"))):
        path = PROJECT_ROOT / name
        digest.update(name.encode() + b"\0" + (path.read_bytes() if path.is_file() else b"") + b"\0")
    return digest.hexdigest()[:12]
