"""Which numbers a machine trains in: bfloat16 where its processor multiplies them, else float32.

A processor without bfloat16 instructions emulates them: on an AVX2 machine 16 GFLOP/s against 106 in float32,
so that a training of two minutes takes a quarter of an hour. Held-out loss is the same within 0.002 nat
(docs/quality.md, "bf16 against fp32").
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from training.config import AUTO, TrainConfig

Precision = Literal["bf16", "fp32"]
# As Linux names them: x86 (AVX-512, AMX) and ARM.
_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_PROCESSOR_INFO = Path("/proc/cpuinfo")


def settle_precision(config: TrainConfig, device_type: str) -> TrainConfig:
    """Return the configuration with numbers in the place of `precision: auto`, for `cpu` or `cuda`."""
    if config.precision != AUTO:
        return config
    return config.model_copy(update={"precision": fastest_precision(device_type)})


def fastest_precision(device_type: str) -> Precision:
    """Return what `auto` means on a device of this machine: bf16 on GPUs and where the processor has it."""
    return "bf16" if device_type != "cpu" or processor_has_bf16() else "fp32"


@lru_cache(maxsize=1)
def processor_has_bf16() -> bool:
    """Tell whether this machine's processor has instructions for bfloat16; no where Linux does not say it."""
    try:
        info = _PROCESSOR_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return has_bf16_instructions(info)


def has_bf16_instructions(processor_info: str) -> bool:
    """Tell by the text of /proc/cpuinfo whether every listed processor has one of the instructions."""
    flags = [
        frozenset(line.partition(":")[2].split())
        for line in processor_info.splitlines()
        if line.startswith(("flags", "Features"))
    ]
    return bool(flags) and all(found & _INSTRUCTIONS for found in flags)
