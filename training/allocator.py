"""The memory allocator that a training process is started with.

A step makes and frees some thousand temporaries of a megabyte or so. glibc gives each other addresses and
hands memory back to the system; tcmalloc gives the newest back at once, still in the cache. Measured on two
cores, quiet, alternating with the system's: 1,203 and 1,097 tokens/s against 1,023 and 889, in 1.64 GB
against 1.72 GB. An allocator can only be chosen before a process starts.
"""

from __future__ import annotations

import ctypes.util
import sys
from collections.abc import Mapping

VARIABLE = "LD_PRELOAD"
INSTALL = "apt install libtcmalloc-minimal4"
"""On Debian and Ubuntu; newer releases call it libtcmalloc-minimal4t64."""


def find_allocator() -> str | None:
    """Return the library name of tcmalloc, or None where it is not installed or cannot be preloaded."""
    if not sys.platform.startswith("linux"):
        return None
    return next(
        (found for name in ("tcmalloc_minimal", "tcmalloc") if (found := ctypes.util.find_library(name))),
        None,
    )


def allocator_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what to add to a training process's environment; nothing where one is chosen already."""
    found = find_allocator()
    return {VARIABLE: found} if found and not environment.get(VARIABLE) else {}
