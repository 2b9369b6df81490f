"""People with promoted adapters, for tests of what happens to those afterwards."""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path

import gguf
import httpx

from serving.adapter_file import file_digest
from serving.adapter_folder import AdapterFolder, PublishedAdapter
from serving.base import adapter_name
from store import jobs
from store.database import Database
from tasks import tools
from tasks.job_folder import ADAPTER_GGUF, METRICS, RECIPE
from tests.adapters import smollm2_gguf
from training.dataset import ChatTemplate
from training.schemas import Job, Outcome, Stage, User

BASE = "smollm2-135m"
OLLAMA_BASE = "smollm2:135m"


@lru_cache
def chat_template() -> ChatTemplate:
    field = gguf.GGUFReader(smollm2_gguf()).get_field("tokenizer.chat_template")
    assert field is not None
    return ChatTemplate(template=field.contents(), bos_token="<|im_start|>", eos_token="<|im_end|>")


@lru_cache
def base_digest() -> str:
    return file_digest(smollm2_gguf())


def new_job(db: Database, user: User) -> Job:
    return jobs.create_job(db, user.id, base_model=BASE, config={}, lora_rank=4, lora_alpha=8)


def at_the_gate(db: Database, user: User, adapter: Path) -> Job:
    """Return a job that is trained and judged and whose folder holds `adapter`; nothing is published."""
    job = new_job(db, user)
    for stage in (Stage.EXTRACT, Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE):
        jobs.enter_stage(db, job.id, stage)
    folder = tools.job_folder(job.id)
    folder.write_json(RECIPE, {"chatTemplate": chat_template().to_json_dict()})
    folder.write_json(METRICS, {})
    if folder.is_local:
        shutil.copy(adapter, Path(folder.path) / ADAPTER_GGUF)
    else:
        folder.fs.put_file(str(adapter), f"{folder.path}/{ADAPTER_GGUF}")
    return jobs.record(
        db, job.id, adapter_digest=file_digest(adapter), adapter_path=f"{folder.url}/{ADAPTER_GGUF}"
    )


def promote(db: Database, user: User, job: Job, engine: str = "llamacpp") -> Job:
    """End the job as promoted: the user's model is this version now."""
    jobs.enter_stage(db, job.id, Stage.PUBLISH)
    name = adapter_name(user.id, job.version)
    jobs.record(db, job.id, model_name=name)
    return jobs.complete_job(db, job.id, Outcome.PROMOTED, ai_provider=engine, ai_model=name)


def put_in_folder(adapters: Path, name: str, adapter: Path) -> None:
    """Publish in the llamacpp engine's folder, without starting the engine to prove it."""
    folder = AdapterFolder(adapters)
    with folder.stage(adapter) as (copy, digest):
        folder.add(copy, PublishedAdapter(name=name, digest=digest, base_digest=base_digest()))


def upload_to_ollama(url: str, adapter: Path) -> str:
    """Upload an adapter file and return its digest; no model is made of it."""
    digest = file_digest(adapter)
    httpx.post(f"{url}/api/blobs/{digest}", content=adapter.read_bytes()).raise_for_status()
    return digest


def put_on_ollama(url: str, name: str, adapter: Path) -> str:
    """Make a model on the server, without generating to prove it; return the adapter's digest."""
    digest = upload_to_ollama(url, adapter)
    body = {"model": name, "from": OLLAMA_BASE, "adapters": {"adapter.gguf": digest}, "stream": False}
    httpx.post(f"{url}/api/create", json=body).raise_for_status()
    return digest


def ollama_names(url: str) -> list[str]:
    listed = httpx.get(f"{url}/api/tags").raise_for_status().json()["models"]
    return sorted(model["name"] for model in listed)


def ollama_holds(url: str, digest: str) -> bool:
    return httpx.head(f"{url}/api/blobs/{digest}").status_code == 200
