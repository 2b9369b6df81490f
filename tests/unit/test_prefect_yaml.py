"""prefect.yaml says what can be started; `prefect deploy` accepts files that crash at run time."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from training.errors import ConfigError
from training.settings import PROJECT_ROOT

PREFECT_FILE = PROJECT_ROOT / "prefect.yaml"


def _load_register() -> ModuleType:
    # deployments/ is a folder of scripts, not a package.
    spec = importlib.util.spec_from_file_location("register", PROJECT_ROOT / "deployments" / "register.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["register"] = module
    spec.loader.exec_module(module)
    return module


register = _load_register()
DECLARED: list[dict[str, Any]] = register.read_deployments(PREFECT_FILE)


def test_at_least_the_two_training_deployments_are_declared() -> None:
    entrypoints = {item["entrypoint"]: item["name"] for item in DECLARED}
    assert entrypoints["flows/train_user.py:train_user"] == "default"
    assert entrypoints["flows/train_adapters.py:train_adapters"] == "gpu"


@pytest.mark.parametrize("item", DECLARED, ids=lambda item: item["entrypoint"])
def test_entrypoint_loads_as_a_real_flow(item: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.flows import Flow, load_flow_from_entrypoint

    monkeypatch.chdir(PROJECT_ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])  # loading puts two folders in front and leaves them there
    flow = load_flow_from_entrypoint(item["entrypoint"], use_placeholder_flow=False)
    assert isinstance(flow, Flow)
    assert flow.name == Path(item["entrypoint"].split(":")[0]).stem.replace("_", "-")
    assert flow.description, "a flow without a docstring gets the text 'None' in the UI"


@pytest.mark.parametrize("item", DECLARED, ids=lambda item: item["entrypoint"])
def test_deployment_says_what_it_is_and_where_it_runs(item: dict[str, Any]) -> None:
    assert len(item["description"]) > 20
    assert "ownvoice" in item["tags"]
    assert item["work_pool"]["name"] in {"cpu", "gpu"}
    assert all(schedule.get("slug") for schedule in item.get("schedules") or [])


def test_training_deployment_of_the_gpu_pool_uses_a_queue_that_register_makes() -> None:
    queues = {
        item["work_pool"].get("work_queue_name") for item in DECLARED if item["work_pool"]["name"] == "gpu"
    }
    assert queues and queues <= set(register.GPU_QUEUES)


def test_pull_step_needs_no_environment_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from prefect.utilities.importtools import import_object

    (step,) = yaml.safe_load(PREFECT_FILE.read_text())["pull"]
    ((function, inputs),) = step.items()
    monkeypatch.chdir(tmp_path)
    assert import_object(function)(**inputs) == {"directory": str(PROJECT_ROOT)}
    assert Path.cwd() == PROJECT_ROOT


@pytest.mark.parametrize("kind", ["process", "docker", "docker-gpu"])
def test_pool_template_is_the_workers_own_with_other_defaults(kind: str) -> None:
    from prefect.workers.process import ProcessWorker
    from prefect_docker.worker import DockerWorker

    worker = ProcessWorker if kind == "process" else DockerWorker
    theirs = worker.get_default_base_job_template()
    ours = json.loads((register.POOL_TEMPLATES / f"{kind}.json").read_text())
    for template in (ours, theirs):
        for field in template["variables"]["properties"].values():
            field.pop("default", None)
    assert ours == theirs


def test_unset_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OWNVOICE_MARSUPILAMI", raising=False)
    text = "deployments: [{name: a, entrypoint: b, work_pool: {name: '{{ $OWNVOICE_MARSUPILAMI }}'}}]"
    (tmp_path / "prefect.yaml").write_text(text)
    with pytest.raises(ConfigError, match="OWNVOICE_MARSUPILAMI, which is not set"):
        register.read_deployments(tmp_path / "prefect.yaml")


def test_key_that_prefect_would_ignore_is_refused(tmp_path: Path) -> None:
    text = "deployments: [{name: a, entrypoint: b, work_pool: {name: cpu}, descripton: typo}]"
    (tmp_path / "prefect.yaml").write_text(text)
    with pytest.raises(ConfigError, match="descripton"):
        register.read_deployments(tmp_path / "prefect.yaml")


def test_flow_file_that_does_not_import_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "import no_such_module\nfrom prefect import flow\n@flow\ndef f(): ...\n"
    )
    text = "deployments: [{name: a, entrypoint: 'broken.py:f', work_pool: {name: cpu}}]"
    (tmp_path / "prefect.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"broken.py:f cannot be loaded: .*no_such_module"):
        register._load_flow("broken.py:f", tmp_path / "prefect.yaml")
