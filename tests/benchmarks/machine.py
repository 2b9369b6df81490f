"""What a figure depends on: the machine, the versions, and whether anybody else was using the processors."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from training.settings import PROJECT_ROOT

PRESSURE_FILE = Path("/proc/pressure/cpu")
QUIET_AVG10 = 5.0
"""Percent of the last 10 s in which some process waited for a processor; above it a figure is worth nothing:
one busy neighbour can take half the speed (references/training.md, pitfalls)."""
OTHERS_LIMIT = 0.05
"""Share of all processor time that others may take during a measurement before it counts as disturbed."""
PACKAGES = ("torch", "transformers", "peft", "trl", "prefect", "psycopg", "xllamacpp")


class Pressure(NamedTuple):
    """One reading of the kernel's pressure stall information (Documentation/accounting/psi.rst)."""

    avg10: float
    """Percent of the last 10 s."""
    stalled_us: int
    """Microseconds since boot."""


def read_pressure(file: Path = PRESSURE_FILE) -> Pressure | None:
    """Return the `some` line of the CPU pressure file, or None where the kernel keeps none."""
    try:
        words = file.read_text().splitlines()[0].split()
        values = dict(word.split("=", 1) for word in words[1:])
        return Pressure(float(values["avg10"]), int(values["total"]))
    except (OSError, IndexError, KeyError, ValueError):
        return None


class PressureWatch:
    """The pressure from its making until `summary` is asked for."""

    def __init__(self, file: Path = PRESSURE_FILE) -> None:
        self._file = file
        self._before = read_pressure(file)
        self._started = time.monotonic()

    def summary(self) -> dict[str, float] | None:
        """Return avg10 before and after (percent), and the share of the time in between in which some
        process, ours or not, waited for a processor; None where it cannot be known."""
        after = read_pressure(self._file)
        if self._before is None or after is None:
            return None
        elapsed_us = max(1.0, (time.monotonic() - self._started) * 1e6)
        return {
            "before_avg10": self._before.avg10,
            "after_avg10": after.avg10,
            "stalled_share": round(min(1.0, (after.stalled_us - self._before.stalled_us) / elapsed_us), 3),
        }


class OthersWatch:
    """What share of the machine others use while this process and the children that it waits for work.

    Pressure cannot say: a measured process with a third thread stalls on two cores all by itself.
    """

    def __init__(self) -> None:
        self._before = self._read()

    def share(self) -> float:
        """Return others' share, 0 to 1, of the processor time there was since the making."""
        elapsed, busy, own = (
            after - before for after, before in zip(self._read(), self._before, strict=True)
        )
        available = max(1e-9, elapsed * (os.cpu_count() or 1))
        return round(min(1.0, max(0.0, (busy - own) / available)), 3)

    @staticmethod
    def _read() -> tuple[float, float, float]:
        every, own = psutil.cpu_times(), os.times()
        # Steal is what the neighbours of a virtual machine took; guest time is counted in user already.
        kinds = ("user", "nice", "system", "irq", "softirq", "steal")
        busy = sum(getattr(every, kind, 0.0) for kind in kinds)
        return time.monotonic(), busy, sum(own[:4])


def describe_machine() -> dict[str, Any]:
    """Return processor, memory, system and package versions; no host name and no path."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the short commit, with `+changes` when files differ from it; None outside a git checkout."""
    try:
        command = ["git", "describe", "--always", "--exclude=*", "--dirty=+changes"]
        done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
