"""Child of the training benchmark: the token ids that every trainer gets, and the base's weights, once.

Leaves in the work folder: `examples.json` (token ids), and the materialised base under `cache` (or where the
request's `cache` says), so that no trainer's peak memory holds the making of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.child import Report, serve
from tests.benchmarks.mailboxes import Mailbox, read_sent

if TYPE_CHECKING:
    from training.dataset import EncodedExample

EXAMPLES = "examples.json"
CACHE = "cache"


def read_examples(work: Path) -> list[dict[str, Any]]:
    """Return the examples as `EncodedExample` takes them: id, thread_id, input_ids, prompt_length."""
    return list(json.loads((work / EXAMPLES).read_text())["examples"])


def read_encoded(work: Path) -> list[EncodedExample]:
    """Return the examples as `train_adapter` takes them."""
    from training.dataset import EncodedExample

    return [
        EncodedExample(e["id"], e["thread_id"], tuple(e["input_ids"]), e["prompt_length"])
        for e in read_examples(work)
    ]


def request_for(mailbox: Mailbox, base_model: str, preset: str, work: Path, cache: Path) -> dict[str, Any]:
    """Return the request of this child for one mailbox."""
    return {
        "name": mailbox.name,
        "path": str(mailbox.path),
        "owner": mailbox.owner,
        "base_model": base_model,
        "preset": preset,
        "work": str(work),
        "cache": str(cache),
    }


def read_weights_path(work: Path) -> str:
    """Return the folder of the base's weights."""
    return str(json.loads((work / EXAMPLES).read_text())["weights"])


def _write(request: dict[str, Any], report: Report) -> dict[str, Any]:
    from training.base_models import find_base_model, load_tokenizer, weights_path
    from training.config import load_train_config
    from training.dataset import encode, prepare

    work, cache = Path(request["work"]), Path(request["cache"])
    work.mkdir(exist_ok=True)
    config = load_train_config(request["preset"])
    mailbox = Mailbox(request["name"], Path(request["path"]), tuple(request["owner"]))
    report(0, 2, "cleaning the mail")
    prepared = prepare(read_sent(mailbox)[-config.data.max_mails :], config.data)
    report(1, 2, "unpacking the base model")
    base = find_base_model(request["base_model"])
    weights = weights_path(base, cache)
    tokenizer = load_tokenizer(base, cache)
    encoded = [encode(example, tokenizer, config.max_seq_tokens) for example in prepared.train]
    examples = [
        {
            "id": e.id,
            "thread_id": e.thread_id,
            "input_ids": e.input_ids,
            "prompt_length": e.prompt_length,
        }
        for e in encoded
    ]
    (work / EXAMPLES).write_text(json.dumps({"examples": examples, "weights": str(weights)}))
    return {"examples": len(encoded), "tokens": sum(len(e.input_ids) for e in encoded)}


if __name__ == "__main__":
    serve(_write)
