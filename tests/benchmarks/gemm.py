"""Child: what the processor reaches in bf16 matrix products, the roof under which every training works."""

from __future__ import annotations

import time
from typing import Any

from tests.benchmarks.child import Report, serve

STEP_TOKENS = 512
SHAPES = (
    (2048, 2048, 2048),
    *((STEP_TOKENS, inner, outer) for inner in (576, 1536) for outer in (576, 1536, 3072)),
)
"""(rows, inner, outer): a large square, and a step's tokens through the layers of SmolLM2-135M."""
SECONDS_PER_SHAPE = 0.4


def measure_gemm(request: dict[str, Any], report: Report) -> dict[str, Any]:
    """Return FLOP/s per shape, the best of single products, and the best shape of all as the peak."""
    import torch

    shapes = []
    for number, (rows, inner, outer) in enumerate(SHAPES):
        report(number, len(SHAPES), f"{rows} x {inner} x {outer}")
        left = torch.randn(rows, inner).bfloat16()
        weight = torch.randn(outer, inner).bfloat16()
        best, until = float("inf"), time.perf_counter() + SECONDS_PER_SHAPE
        while time.perf_counter() < until:
            started = time.perf_counter()
            torch.nn.functional.linear(left, weight)
            best = min(best, time.perf_counter() - started)
        flops = 2 * rows * inner * outer / best
        shapes.append({"rows": rows, "inner": inner, "outer": outer, "flops": round(flops)})
    return {
        "peak_flops": max(shape["flops"] for shape in shapes),
        "threads": torch.get_num_threads(),
        "shapes": shapes,
    }


if __name__ == "__main__":
    serve(measure_gemm)
