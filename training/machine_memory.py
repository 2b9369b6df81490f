"""How much memory this machine, or the container on it, has free, and what this process held at most.

No torch: the command line asks too.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def free_machine_bytes(cgroup: Path = CGROUP) -> int:
    """Return what this process may still take: the machine's available memory, or less in a container."""
    free = int(psutil.virtual_memory().available)
    limit = _cgroup_free(cgroup)
    return free if limit is None else min(free, limit)


def peak_process_bytes() -> int:
    """Return the most memory that this process ever held."""
    with suppress(OSError):
        # VmHWM of proc(5), in kB: getrusage's ru_maxrss starts from the size of the process that forked us.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


def _cgroup_free(cgroup: Path) -> int | None:
    """Return the limit less what is used, without file caches, which the kernel gives back when asked.

    Files: memory.max, memory.current, memory.stat of cgroup v2; memory/memory.limit_in_bytes and its
    neighbours of v1 (kernel documentation, admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst). In a
    container they stand at the root, and without any limit they are absent or say `max`.
    """
    for limit_file, used_file, stat_file, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        try:
            limit = (cgroup / limit_file).read_text().strip()
            used = int((cgroup / used_file).read_text())
            stat = dict(line.split() for line in (cgroup / stat_file).read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit != "max":
            return max(0, int(limit) - used + int(stat.get(cache, 0)))
    return None
