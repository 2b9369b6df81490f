"""Reference adapters: one for each persona of the panel, trained once per base and kept in the cache.

Specificity (metric 2 of the gate) asks whether an adapter writes like this person or just like somebody who
writes mail; the adapters of other people are what it is compared with. They are trained by the shipped recipe
whatever the person's own is, so that everybody is compared with the same ones. (references/voice.md §3)
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from training import lora
from training.checkpoint import fingerprint
from training.config import TrainConfig, load_train_config
from training.dataset import EncodedExample, encode
from training.errors import NotEnoughMemory, StorageError, TrainingDiverged
from training.export import sha256_of
from training.loaded_base import LoadedBase
from training.panel_file import PanelMember
from training.schemas import TrainingProgress
from training.start_adapter import CONFIG_FILE, WEIGHTS_FILE

REFERENCE_FORMAT = 1
"""Part of the cache key; raise it when the same recipe and mail make another adapter."""
COMPLETE = "complete.json"
"""Digests of the adapter's files, written last; in a folder without an adapter, why there is none."""
STALE_S = 24 * 3600
"""Age at which a folder that was being written is what a killed process left behind."""


def reference_adapters(
    base: LoadedBase,
    personas: Sequence[PanelMember],
    cache: Path,
    *,
    config: TrainConfig | None = None,
    on_progress: Callable[[TrainingProgress], None] | None = None,
    on_left_out: Callable[[str, str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Path]:
    """Return a folder of PEFT files for each persona, by name; those that are not in `cache` are trained.

    `config` replaces the shipped recipe (`reference_config`). Progress has the phase `panel`, with the steps
    of the adapter in work. A persona whose training diverges or does not fit into memory is left out:
    `on_left_out(name, reason)`. Several processes may do this at once.

    Raises TrainingCancelled when `should_stop` says so; what was finished by then stays in the cache. Raises
    StorageError when the cache cannot be written.
    """
    config = config or reference_config(base)
    digest = _digest_of_base(base)
    found: dict[str, Path] = {}
    missing: list[tuple[PanelMember, list[EncodedExample], Path]] = []
    for persona in personas:
        examples = [encode(example, base.tokenizer, config.max_seq_tokens) for example in persona.train]
        folder = cache / "panel" / reference_key(base, config, examples, digest) / persona.name
        if _is_whole(folder):
            found[persona.name] = folder
        else:
            missing.append((persona, examples, folder))
    started = time.monotonic()
    for number, (persona, examples, folder) in enumerate(missing, start=1):

        def report(progress: TrainingProgress, number: int = number) -> None:
            if on_progress is not None:
                done = (number - 1 + progress.step / progress.steps) / len(missing)
                on_progress(
                    progress.model_copy(
                        update={
                            "phase": "panel",
                            "reference": number,
                            "references": len(missing),
                            "eta_seconds": (time.monotonic() - started) * (1 - done) / done,
                        }
                    )
                )

        reason = _why_none(folder) if examples else "it has no training mail"
        if not reason:
            try:
                reason = _train(base, config, examples, folder, report, should_stop)
            except OSError as exc:
                raise StorageError(
                    f"The reference adapters cannot be written into the cache ({exc.strerror}). Give its "
                    "folder (cache in OWNVOICE_HOME) free space and leave to write, then retry the job."
                ) from exc
        if not reason:
            found[persona.name] = folder
        elif on_left_out is not None:
            on_left_out(persona.name, reason)
    return {persona.name: found[persona.name] for persona in personas if persona.name in found}


def reference_config(base: LoadedBase) -> TrainConfig:
    """Return the recipe of reference adapters: the preset `default`, in the precision of the loaded base.

    With numbers of its own, not with those that training.choose would choose from so little mail: 6 epochs at
    5e-4 made a weaker opponent of kit for twice the time (on ten held-out mails of kit and of the other three
    3.68, 3.72, 4.96 and 4.08 nat per token, against 3.62, 3.60, 4.82 and 3.94 after 3 at 1e-3; one seed). Two
    epochs, as persons have: on their own held-out mail the four are at 2.66, 3.57, 3.58 and 3.31 nat, after
    three at 2.66, 3.51, 3.51 and 3.29, for two thirds of the time, which the first training waits for.
    """
    weight = base.model.get_input_embeddings().weight
    return load_train_config(
        "default",
        {
            "epochs": 2,
            "precision": "bf16" if weight.dtype == torch.bfloat16 else "fp32",
            "quantise": "nf4" if getattr(base.model, "is_loaded_in_4bit", False) else "none",
        },
    )


def reference_key(
    base: LoadedBase, config: TrainConfig, examples: Sequence[EncodedExample], base_digest: str
) -> str:
    """Return what decides a reference adapter, as 32 hex digits: base, recipe and the exact token ids."""
    parts = (REFERENCE_FORMAT, base_digest, fingerprint(config, examples, base.info))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _digest_of_base(base: LoadedBase) -> str:
    """Return the digest of the base's file; on the hub, its revision (a commit) says the same."""
    gguf = base.info.gguf_path
    return sha256_of(gguf) if gguf is not None else str(base.info.revision)


def _train(
    base: LoadedBase,
    config: TrainConfig,
    examples: Sequence[EncodedExample],
    folder: Path,
    on_progress: Callable[[TrainingProgress], None],
    should_stop: Callable[[], bool] | None,
) -> str:
    """Train one reference adapter into `folder`, whole or not at all; returns why there is none, or ""."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    # In the same folder as the target: a rename across file systems would be a copy, which can be torn.
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    made = aside / "adapter"
    try:
        try:
            lora.train_adapter(
                config, examples, base, aside, on_progress=on_progress, should_stop=should_stop
            )
        except NotEnoughMemory as exc:
            return str(exc)  # another machine, or the same when it is less busy, may hold it
        except TrainingDiverged as exc:
            # Kept, too: the same recipe on the same mail would diverge again before every job.
            made.mkdir(exist_ok=True)
            (made / COMPLETE).write_text(json.dumps({"reason": str(exc)}), encoding="utf-8")
            _put(made, folder)
            return str(exc)
        digests = {name: sha256_of(made / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
        (made / COMPLETE).write_text(json.dumps({"digests": digests}), encoding="utf-8")
        _put(made, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return ""


def _put(made: Path, folder: Path) -> None:
    """Move a finished folder to its place, unless another process was quicker; a damaged one makes way."""
    if _read_complete(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        made.rename(folder)
    except OSError:
        if _read_complete(folder) is None:
            raise


def _is_whole(folder: Path) -> bool:
    """Tell whether an adapter lies in `folder` exactly as it was written."""
    found = _read_complete(folder)
    return found is not None and "digests" in found


def _why_none(folder: Path) -> str:
    """Return why an earlier training left no adapter here, or "" when it is still to be made."""
    found = _read_complete(folder)
    return str(found.get("reason", "")) if found else ""


def _read_complete(folder: Path) -> dict[str, object] | None:
    """Return what was noted when the folder was finished; None when it is not there or was damaged since."""
    try:
        found = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        if isinstance(found.get("reason"), str):
            return dict(found)
        digests = found["digests"]
        whole = {name: sha256_of(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE)} == digests
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(found) if whole else None


def _sweep(folder: Path) -> None:
    """Delete what processes that were killed left beside `folder`; each may be as large as a checkpoint."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        try:
            if time.time() - left.stat().st_mtime > STALE_S:
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue
