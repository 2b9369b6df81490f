"""prefect.yaml says what can be started; `prefect deploy` accepts files that crash at run time."""

from __future__ import annotations

import asyncio
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


def test_these_are_the_deployments_and_their_pools() -> None:
    found = {f"{item['entrypoint']} → {item['name']}": item["work_pool"]["name"] for item in DECLARED}
    assert found == {
        "flows/train_user.py:train_user → default": "cpu",
        "flows/train_adapters.py:train_adapters → gpu": "gpu",
        "flows/train_cohort.py:train_cohort → default": "cpu",
        "flows/dispatch_jobs.py:dispatch_jobs → every-minute": "cpu",
        "flows/eligibility_scan.py:eligibility_scan → daily": "cpu",
        "flows/monthly_retrain.py:monthly_retrain → daily-due": "cpu",
        "flows/publish_adapter.py:rollback_adapter → rollback": "cpu",
        "flows/erase_user.py:erase_user → default": "cpu",
    }


@pytest.mark.parametrize(
    ("flow", "slug", "cron"),
    [
        ("dispatch_jobs", "every-minute", "* * * * *"),
        ("eligibility_scan", "daily", "0 6 * * *"),
        ("monthly_retrain", "daily-due", "30 6 * * *"),
    ],
)
def test_schedule_is_found_again_by_its_slug_and_has_a_zone(flow: str, slug: str, cron: str) -> None:
    (schedule,) = _declared(flow)["schedules"]
    assert schedule == {"slug": slug, "cron": cron, "timezone": "UTC"}


@pytest.mark.parametrize("flow", ["eligibility_scan", "monthly_retrain"])
def test_daily_schedules_follow_the_zone_of_the_environment(flow: str) -> None:
    (schedule,) = _declared(flow, {"OWNVOICE_TIMEZONE": "Europe/Berlin"})["schedules"]
    assert schedule["timezone"] == "Europe/Berlin"


def test_plain_prefect_deploy_reads_an_unset_zone_as_utc() -> None:
    """Prefect puts an empty string where a variable of the YAML is unset."""
    from datetime import UTC, datetime

    from prefect.server.schemas.schedules import CronSchedule

    async def first(timezone: str) -> Any:
        schedule = CronSchedule(cron="0 6 * * *", timezone=timezone)
        return await schedule.get_dates(n=2, start=datetime(2026, 3, 1, tzinfo=UTC))

    assert asyncio.run(first("")) == asyncio.run(first("UTC"))


@pytest.mark.parametrize("flow", ["dispatch_jobs", "eligibility_scan", "monthly_retrain"])
def test_what_a_schedule_starts_never_piles_up(flow: str) -> None:
    """Late runs above the limit are cancelled; a queue of them would be worked off one by one."""
    limit = _declared(flow)["concurrency_limit"]
    assert limit["collision_strategy"] == "CANCEL_NEW"
    assert limit["limit"] == (3 if flow == "dispatch_jobs" else 1)


def test_trainings_are_limited_by_their_pools_alone() -> None:
    limits = {
        item["entrypoint"]: item.get("concurrency_limit")
        for item in DECLARED
        if item["name"] in ("default", "gpu")
    }
    assert limits and not any(limits.values())


def test_dispatcher_of_a_burst_looks_for_longer_than_its_trigger_passes_over_events() -> None:
    (trigger,) = _declared("dispatch_jobs")["triggers"]
    assert trigger["expect"] == ["ownvoice.job.created"]
    assert trigger["threshold"] == 1 and trigger.get("posture", "Reactive") == "Reactive"
    assert 0 < trigger["within"] < trigger["parameters"]["linger_s"] <= 15


def test_trigger_and_flow_agree_on_the_event() -> None:
    from tasks.dispatch import JOB_CREATED

    (trigger,) = _declared("dispatch_jobs")["triggers"]
    assert trigger["expect"] == [JOB_CREATED]


def _declared(flow: str, variables: dict[str, str] | None = None) -> dict[str, Any]:
    declared = register.read_deployments(PREFECT_FILE, variables) if variables else DECLARED
    (item,) = [item for item in declared if item["entrypoint"].startswith(f"flows/{flow}.py:")]
    return dict(item)


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
