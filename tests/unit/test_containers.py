"""The container files: what a secret may not reach, what restarts, what is pinned."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from training.base_models import load_base_models
from training.errors import ConfigError
from training.settings import PROJECT_ROOT, Settings, load_settings

FOLDER = PROJECT_ROOT / "deployments" / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
ONE_SHOT = {"register"}
SECRETS = {"DATABASE_URL", "INTERNAL_API_KEY", "FINE_TUNING_WEBHOOK_URL", "VASTAI_API_KEY"}
VERSION = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]["version"]
REFERENCE = re.compile(r"\$\{(\w+)(:[?-])?([^}]*)\}")


def _pool(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((PROJECT_ROOT / "deployments/pools" / f"{name}.json").read_text())
    return found


def _defaults(pool: str) -> dict[str, Any]:
    return {name: field.get("default") for name, field in _pool(pool)["variables"]["properties"].items()}


# ---- compose.yaml ----------------------------------------------------------------------------------


def test_compose_has_the_services_of_the_stack() -> None:
    assert set(SERVICES) == {"postgres", "prefect-server", "register", "cpu-worker", "gpu-worker", "ollama"}


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - ONE_SHOT))
def test_service_restarts_and_says_when_it_is_healthy(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_service_waits_for_what_it_needs(name: str) -> None:
    waits = {other: item["condition"] for other, item in SERVICES[name].get("depends_on", {}).items()}
    assert waits.keys() <= SERVICES.keys()
    for other, condition in waits.items():
        ended = "service_completed_successfully"
        assert condition == (ended if other in ONE_SHOT else "service_healthy")


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_image_is_pinned_and_ours_carries_our_version(name: str) -> None:
    repository, _, tag = SERVICES[name]["image"].partition(":")
    assert re.match(r"\d+\.\d+", tag), f"{SERVICES[name]['image']} moves"
    assert not repository.startswith("ownvoice") or tag == VERSION


def test_gpu_worker_has_a_gpu_and_no_way_to_the_database() -> None:
    worker = SERVICES["gpu-worker"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]
    assert worker["environment"]["OWNVOICE_ENV_FILE"] == ""
    assert not SECRETS & worker["environment"].keys()
    assert "postgres" not in json.dumps(worker) and "DB_PASSWORD" not in json.dumps(worker)
    assert not set(worker["networks"]) & set(SERVICES["postgres"]["networks"])


def test_no_service_holds_the_docker_socket_or_more_rights() -> None:
    assert "docker.sock" not in json.dumps(SERVICES)
    assert not any("privileged" in service or "cap_add" in service for service in SERVICES.values())


def test_secrets_come_from_the_environment_and_are_asked_for_by_a_sentence() -> None:
    text = (FOLDER / "compose.yaml").read_text()
    secret = [match for match in REFERENCE.finditer(text) if re.search("PASSWORD|KEY", match[1])]
    assert secret
    for match in secret:
        assert match[2] == ":?" and match[3].startswith(f"set {match[1]}, "), match[0]
    for service in SERVICES.values():
        for name, value in (service.get("environment") or {}).items():
            if re.search("PASSWORD|KEY|AUTH|DATABASE", name):
                assert "${" in value, f"{name} is written out"


def test_example_file_names_every_variable_and_holds_no_secret() -> None:
    lines = [line for line in (FOLDER / ".env.example").read_text().splitlines() if "=" in line]
    example = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    used = {match[1]: match[2] for match in REFERENCE.finditer((FOLDER / "compose.yaml").read_text())}
    assert example.keys() == used.keys()
    assert [name for name, kind in used.items() if kind == ":?" and example[name]] == []
    assert example["OWNVOICE_BASE_MODEL"] in load_base_models()


def test_variables_of_the_workers_are_ones_that_settings_read() -> None:
    known = {
        alias
        for field in Settings.model_fields.values()
        for alias in field.validation_alias.choices  # type: ignore[union-attr]
    } | {"OWNVOICE_ENV_FILE"}
    for name in ("register", "cpu-worker", "gpu-worker"):
        ours = {item for item in SERVICES[name]["environment"] if not item.startswith("PREFECT_")}
        assert ours <= known


# ---- Dockerfile ------------------------------------------------------------------------------------


def test_both_images_end_as_an_ordinary_user() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    final = {stage.split(" AS ")[1].split()[0]: stage for stage in stages if " AS " in stage}
    for target in ("cpu", "gpu"):
        assert re.findall(r"^USER (\S+)$", final[target], flags=re.MULTILINE) == ["ownvoice"]


def test_every_download_of_pip_is_held_to_the_tested_versions() -> None:
    installs = [part for part in re.split(r"&&|\n\n", DOCKERFILE) if "pip install" in part]
    assert len(installs) >= 4
    assert all("--constraint constraints.txt" in part or "--no-index" in part for part in installs)


def test_no_argument_or_variable_of_the_images_carries_a_secret() -> None:
    declared = re.findall(r"^\s*(?:ARG|ENV)?\s*([A-Z_]+)=", DOCKERFILE, flags=re.MULTILINE)
    assert {"BASE", "TORCH_INDEX", "OWNVOICE_HOME"} <= set(declared)
    assert not [name for name in declared if re.search("PASSWORD|SECRET|TOKEN|KEY|DATABASE|AUTH", name)]


def test_what_enters_the_images_is_listed_one_by_one() -> None:
    lines = (PROJECT_ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    entering = {line[1:] for line in rules if line.startswith("!")}
    assert entering and all((PROJECT_ROOT / name).exists() for name in entering)
    packages = {item.parent.name for item in PROJECT_ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages <= entering and not {"tests", "samples", ".env", ".git"} & entering


# ---- the database of the Prefect server ------------------------------------------------------------


def test_script_that_makes_prefects_database_is_valid_shell() -> None:
    script = FOLDER / "create-prefect-database.sh"
    assert shutil.which("sh") and subprocess.run(["sh", "-n", script], check=False).returncode == 0
    assert "PASSWORD :'password'" in script.read_text()


# ---- Docker work pools -----------------------------------------------------------------------------


def test_pools_use_the_images_and_volumes_of_compose() -> None:
    volumes = {volume["name"] for volume in COMPOSE["volumes"].values()}
    for pool, worker in (("docker", "cpu-worker"), ("docker-gpu", "gpu-worker")):
        assert _defaults(pool)["image"] == SERVICES[worker]["image"]
        sources = {item.split(":")[0] for item in _defaults(pool)["volumes"]}
        assert {item for item in sources if not item.startswith("/")} <= volumes


def test_cpu_flow_runs_read_their_secrets_from_a_file_of_the_worker_host() -> None:
    found = _defaults("docker")
    place = found["env"]["OWNVOICE_ENV_FILE"]
    assert any(item.split(":")[1:] == [place, "ro"] for item in found["volumes"])


def test_run_whose_secrets_were_not_mounted_fails_and_names_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("OWNVOICE_ENV_FILE", str(tmp_path))  # Docker's stand-in for a missing file is a folder
    with pytest.raises(ConfigError, match=rf"OWNVOICE_ENV_FILE names {tmp_path}, which is not a file"):
        load_settings()
    secrets = tmp_path / "flow-runs.env"
    secrets.write_text("DATABASE_URL=postgresql://palombia\n")
    monkeypatch.setenv("OWNVOICE_ENV_FILE", str(secrets))
    assert load_settings().database_url is not None


def test_gpu_flow_runs_read_no_file_and_mount_none() -> None:
    found = _defaults("docker-gpu")
    assert found["env"] == {"OWNVOICE_ENV_FILE": ""}
    assert not [item for item in found["volumes"] if item.startswith("/") or "home" in item]


def test_no_template_carries_a_secret() -> None:
    for pool in ("docker", "docker-gpu", "process"):
        assert not SECRETS & (_defaults(pool).get("env") or {}).keys()
        assert "password" not in json.dumps(_defaults(pool)).lower()


def test_gpu_request_of_the_template_reaches_the_engine_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """From our template through the worker and the client library to the JSON that the engine is sent."""
    from docker.models.containers import _create_container_args
    from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration

    monkeypatch.setenv("DATABASE_URL", "postgresql://palombia")
    configuration = asyncio.run(
        DockerWorkerJobConfiguration.from_template_and_values(
            _pool("docker-gpu"), {}, client=SimpleNamespace()
        )
    )
    engine = SimpleNamespace(version=lambda: {"Version": "28.0.0"})
    sent = DockerWorker._build_container_settings(SimpleNamespace(), engine, configuration)  # type: ignore[arg-type]
    arguments = _create_container_args({**sent, "version": "1.41"})
    (request,) = arguments["host_config"]["DeviceRequests"]
    assert (request["Driver"], request["Count"], request["Capabilities"]) == ("nvidia", -1, [["gpu"]])
    assert arguments["host_config"]["ShmSize"] == 2**30
    assert "palombia" not in json.dumps(sent)


def test_readme_names_the_files_it_talks_about() -> None:
    text = (FOLDER / "README.md").read_text()
    named = set(re.findall(r"deployments/[\w./-]*\w", text))
    assert named and all((PROJECT_ROOT / name).exists() for name in named if not name.endswith("/.env"))
    assert Path("/etc/ownvoice/flow-runs.env").as_posix() in text
