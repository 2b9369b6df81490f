"""What a training costs besides its steps: imports, the base, the adapter's making, saving and converting."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks.child import Report, run_child, serve
from tests.benchmarks.mailboxes import find_mailbox
from tests.benchmarks.train import BASE_MODEL, MAILBOX, PRESET
from tests.benchmarks.train_data import CACHE, request_for

TITLE = "Fixed costs"
RUNS = 3
NAMES = {
    "import_torch": "import torch",
    "import_transformers": "import transformers, its model and tokenizer classes",
    "import_peft": "import peft",
    "load_base": "load the base and its tokenizer",
    "wrap": "put the adapter on it",
    "save": "save the adapter",
    "convert": "convert it to GGUF",
}


def measure(work: Path, quick: bool, report: Report) -> dict[str, Any]:
    """Measure in fresh processes, after one that unpacks the base; figures are medians, in seconds."""
    request = request_for(find_mailbox(MAILBOX), BASE_MODEL, PRESET, work, work / CACHE)
    run_child("tests.benchmarks.train_data", request, lambda done, total, text: report(0, RUNS + 1, text))

    def pay(number: int) -> dict[str, Any]:
        return run_child(
            "tests.benchmarks.fixed_costs",
            {"cache": str(work / CACHE), "base_model": BASE_MODEL, "preset": PRESET},
            lambda done, total, text: report(number + done / total, RUNS + 1, text),
        )

    runs = [pay(number) for number in range(1, 2 if quick else RUNS + 1)]
    seconds = {name: round(median(run["seconds"][name] for run in runs), 3) for name in NAMES}
    return {
        "base_model": BASE_MODEL,
        "seconds": seconds,
        "all_seconds": round(sum(seconds.values()), 2),
        "adapter_bytes": runs[0]["adapter_bytes"],
        "gguf_bytes": runs[0]["gguf_bytes"],
        "runs": runs,
    }


def table(figures: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the Markdown table, header first."""
    return [
        [f"{figures['base_model']}, files in the page cache", "seconds"],
        *([text, f"{figures['seconds'][name]:.2f}"] for name, text in NAMES.items()),
        ["in all", f"{figures['all_seconds']:.2f}"],
    ]


def notes(figures: dict[str, Any]) -> list[str]:
    """Return the paragraphs under the table."""
    return [
        f"Medians of {len(figures['runs'])} fresh processes. The adapter's file is "
        f"{figures['adapter_bytes'] / 1e6:.1f} MB, as GGUF {figures['gguf_bytes'] / 1e6:.1f} MB."
    ]


def _pay(request: dict[str, Any], report: Report) -> dict[str, Any]:
    seconds: dict[str, float] = {}

    def timed(name: str, act: Callable[[], Any]) -> Any:
        report(len(seconds), len(NAMES), NAMES[name])
        started = time.perf_counter()
        result = act()
        seconds[name] = time.perf_counter() - started
        return result

    def import_transformers() -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401  (they are imported on use)

    timed("import_torch", lambda: importlib.import_module("torch"))
    timed("import_transformers", import_transformers)
    peft = timed("import_peft", lambda: importlib.import_module("peft"))
    from training.base_models import find_base_model
    from training.config import load_train_config
    from training.export import export_gguf
    from training.loaded_base import load_base
    from training.speed_up import speed_up

    config = load_train_config(request["preset"])
    info = find_base_model(request["base_model"])
    base = timed("load_base", lambda: load_base(info, Path(request["cache"]), config))

    def wrap() -> Any:
        lora = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            lora_dropout=config.lora.dropout,
            target_modules=list(config.lora.target_modules),
        )
        model = peft.get_peft_model(base.model, lora, autocast_adapter_dtype=False)
        speed_up(model)
        return model

    model = timed("wrap", wrap)
    with TemporaryDirectory(dir=request["cache"]) as out:
        adapter, gguf = Path(out) / "adapter", Path(out) / "adapter.gguf"
        timed("save", lambda: model.save_pretrained(str(adapter)))
        timed("convert", lambda: export_gguf(adapter, info, base.model.config.to_dict(), gguf))
        return {
            "seconds": seconds,
            "adapter_bytes": (adapter / "adapter_model.safetensors").stat().st_size,
            "gguf_bytes": gguf.stat().st_size,
        }


if __name__ == "__main__":
    serve(_pay)
