"""One job from mailbox to adapter in containers: our Dockerfile, a real engine, Docker workers and pools.

Server, registration, workers and flow runs all are containers of the image that is built here, started
with the commands of compose.yaml. Only what this machine cannot have is replaced: the base image comes from
debootstrap, the CPU image stands for the GPU image, and no GPU is asked for.
"""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from store import embedded
from store.database import open_database
from tests.e2e.docker_engine import Engine, NoEngine, build_image, docker_engine, make_base_image
from tests.e2e.stack import LAX_GATE, MERRIN, SAMPLE, TRAIN_S, YARD, CommandLine, wait_for
from tests.e2e.tcp_bridge import tcp_bridge
from training.settings import PROJECT_ROOT

pytestmark = pytest.mark.docker

CPU_IMAGE, GPU_IMAGE = "ownvoice-cpu:0.1.0", "ownvoice-gpu:0.1.0"
PASSWORD = "palombia-database-password"
KEY = "palombia-internal-key"
UID = 1000
SECRET_FILE = "/etc/ownvoice/flow-runs.env"
"""Where the pool's template expects the secrets on the host of a CPU worker."""
GATE = "/run/secrets/gate.yaml"
SOCKET = "/var/run/docker.sock"


@dataclass(frozen=True)
class Containers:
    """What the job left behind: its row, its containers, and the server that still runs."""

    engine: Engine
    api_url: str
    job: dict[str, Any]
    train_user: dict[str, Any]
    """`docker inspect` of the container that ran train-user (CPU pool)."""
    train_adapters: dict[str, Any]

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        method = "GET" if body is None else "POST"
        return (
            httpx.request(method, f"{self.api_url}/{path}", json=body, timeout=30).raise_for_status().json()
        )


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    folder = Path(tempfile.mkdtemp(prefix="ov-docker-")).resolve()
    try:
        with docker_engine(folder) as found:
            yield found
    except NoEngine as reason:
        pytest.skip(str(reason))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def image(engine: Engine) -> str:
    started = time.monotonic()
    folder = engine.data.parent
    try:
        make_base_image(engine, folder, "debian-python")
        based = time.monotonic()
        build_image(engine, folder, base="debian-python", target="cpu", name=CPU_IMAGE)
    except NoEngine as reason:
        pytest.skip(str(reason))
    engine("tag", CPU_IMAGE, GPU_IMAGE)
    gigabytes = engine.inspect(CPU_IMAGE)[0]["Size"] / 1e9
    took = f"base {based - started:.0f} s, build {time.monotonic() - based:.0f} s"
    print(f"{engine.driver}: {took}, {gigabytes:.2f} GB")
    return CPU_IMAGE


@pytest.fixture(scope="module")
def ran(engine: Engine, image: str) -> Iterator[Containers]:
    """Import the sample and train its owner with preset cpu-smoke; only the command line is no container."""
    home = Path(tempfile.mkdtemp(prefix="ov-")).resolve()
    try:
        with tcp_bridge(_database_with_password(home)) as port:
            yield _run_job(engine, image, home, f"postgresql://ownvoice:{PASSWORD}@127.0.0.1:{port}/ownvoice")
    finally:
        embedded.stop(home)
        shutil.rmtree(home, ignore_errors=True)


def test_the_job_trains_and_publishes_to_its_end(ran: Containers) -> None:
    assert (ran.job["status"], ran.job["outcome"], ran.job["progress"]) == ("COMPLETED", "PROMOTED", 100)
    (run,) = ran.ask("flow_runs/filter", {"flow_runs": {"id": {"any_": [ran.job["flowRunId"]]}}})
    assert run["state_type"] == "COMPLETED"
    assert ran.train_user["Config"]["Labels"]["io.prefect.flow-run-id"] == ran.job["flowRunId"]


def test_both_flow_runs_ran_in_containers_of_their_pools_image(ran: Containers) -> None:
    assert ran.train_user["Config"]["Image"] == CPU_IMAGE
    assert ran.train_adapters["Config"]["Image"] == GPU_IMAGE
    assert {item["State"]["ExitCode"] for item in (ran.train_user, ran.train_adapters)} == {0}
    pools = [
        item["Config"]["Labels"]["io.prefect.work-pool-name"] for item in (ran.train_user, ran.train_adapters)
    ]
    assert pools == ["cpu", "gpu"]


def test_containers_run_as_an_ordinary_user_and_share_the_storage_volume(ran: Containers) -> None:
    assert ran.train_user["Config"]["User"] == ran.train_adapters["Config"]["User"] == "ownvoice"
    folder = ran.engine.volume("ownvoice-storage") / "jobs" / ran.job["id"]
    written = {path.name: path.stat().st_uid for path in folder.iterdir()}
    assert {"report.json", "metrics.json"} <= written.keys() and set(written.values()) == {UID}


def test_gpu_container_holds_no_way_to_the_database(ran: Containers) -> None:
    variables = dict(item.split("=", 1) for item in ran.train_adapters["Config"]["Env"])
    assert variables["OWNVOICE_ENV_FILE"] == ""
    assert (
        not {"DATABASE_URL", "INTERNAL_API_KEY", "FINE_TUNING_WEBHOOK_URL", "VASTAI_API_KEY"}
        & variables.keys()
    )
    mounted = {item["Destination"] for item in ran.train_adapters["Mounts"]}
    assert mounted == {"/var/lib/ownvoice/cache", "/var/lib/ownvoice/storage"}


def test_no_secret_is_in_what_docker_or_prefect_keeps(ran: Containers) -> None:
    kept = {
        "train-user container": ran.train_user,
        "train-adapters container": ran.train_adapters,
        "containers' output": [
            ran.engine("logs", item["Id"]) for item in (ran.train_user, ran.train_adapters)
        ],
        "image": ran.engine.inspect(CPU_IMAGE),
        "work pools": ran.ask("work_pools/filter", {}),
        "deployments": ran.ask("deployments/filter", {}),
        "flow runs": ran.ask("flow_runs/filter", {}),
        "artifacts": ran.ask("artifacts/filter", {}),
        "logs": ran.ask("logs/filter", {}),
    }
    assert all(kept.values())
    assert [
        name for name, record in kept.items() if PASSWORD in json.dumps(record) or KEY in json.dumps(record)
    ] == []


def test_image_keeps_nothing_of_the_build(engine: Engine, image: str) -> None:
    script = "ls -A . /run/secrets /etc/pip.conf; ls -A samples; id -u"
    listed = engine("run", "--rm", "--network", "none", image, "sh", "-c", script)
    *_, samples, uid = listed.splitlines()
    # Of the samples the invented people alone: the gate's reference panel.
    assert (samples, uid) == ("personas", str(UID))
    assert "pip.conf" not in listed and "ca.pem" not in listed
    assert ".env" not in listed and ".git" not in listed and "merrin" not in listed


# ---- how it is brought about -----------------------------------------------------------------------


def _database_with_password(home: Path) -> str:
    """Start an embedded PostgreSQL whose role `ownvoice` needs its password; return the socket's address.

    So the job can only end when the mounted file brought the password into the container.
    """
    url = embedded.start(home)
    with open_database(url, max_connections=1) as db, db.connection() as connection:
        connection.execute(f"CREATE ROLE ownvoice LOGIN PASSWORD '{PASSWORD}'")
        connection.execute("ALTER DATABASE ownvoice OWNER TO ownvoice")
        rules = home / "postgres" / "pg_hba.conf"
        rules.write_text("local all ownvoice scram-sha-256\n" + rules.read_text())
        connection.execute("SELECT pg_reload_conf()")
    return str(embedded._socket_folder(home / "postgres") / f".s.PGSQL.{embedded.PORT}")


def _run_job(engine: Engine, image: str, home: Path, database_url: str) -> Containers:
    port = _free_port()
    api_url = f"http://127.0.0.1:{port}/api"
    secrets = home / "flow-runs.env"
    secrets.write_text(
        f"DATABASE_URL={database_url}\nINTERNAL_API_KEY={KEY}\nOWNVOICE_SERVING=llamacpp\nOWNVOICE_GATE={GATE}\n"
    )
    secrets.chmod(0o400)
    shutil.chown(secrets, UID, UID)
    mounted = (
        "--volume",
        f"{secrets}:/run/secrets/ownvoice.env:ro",
        "--env",
        "OWNVOICE_ENV_FILE=/run/secrets/ownvoice.env",
    )
    services = yaml.safe_load((PROJECT_ROOT / "deployments/docker/compose.yaml").read_text())["services"]

    # compose.yaml gives the server a PostgreSQL; the embedded one lacks an extension that Prefect needs.
    server = ("python", "-m", "app.prefect_server", "--host", "127.0.0.1", "--port", str(port))
    engine("run", "--detach", "--network", "host", "--name", "prefect-server", image, *server)
    wait_for(lambda: _is_up(api_url), "the Prefect server in its container")

    *shell, script = services["register"]["command"]
    prefect = ("--network", "host", "--env", f"PREFECT_API_URL={api_url}")
    engine("run", "--rm", *prefect, *mounted, image, *shell, f"{script} --pool-type docker", timeout_s=300)
    _fit_pools_to_this_machine(api_url, secrets)

    # Their own folder holds the socket: a worker that may start containers is root on its host.
    group = str(engine.socket.stat().st_gid)
    for pool in ("cpu", "gpu"):
        worker = [
            "prefect",
            "worker",
            "start",
            "--pool",
            pool,
            "--type",
            "docker",
            "--name",
            f"docker-{pool}",
        ]
        seen = (
            "--group-add",
            group,
            "--volume",
            f"{engine.socket}:{SOCKET}",
            "--env",
            "PREFECT_WORKER_QUERY_SECONDS=1",
        )
        engine("run", "--detach", "--name", f"worker-{pool}", *prefect, *seen, image, *worker)

    (home / "cli").mkdir()
    command = CommandLine(home / "cli", {"DATABASE_URL": database_url, "PREFECT_API_URL": api_url})
    command("import", SAMPLE, "--user", MERRIN, "--alias", YARD, "--json")
    try:
        job = command("train", MERRIN, "--config", "cpu-smoke", "--follow", "--json", timeout_s=TRAIN_S).json
    except AssertionError as failure:
        said = [f"{name}:\n{engine('logs', '--tail', '40', name)}" for name in ("worker-cpu", "worker-gpu")]
        raise AssertionError("\n".join([str(failure), *said])) from failure
    return Containers(
        engine=engine,
        api_url=api_url,
        job=job,
        train_user=_container_of(engine, "train-user"),
        train_adapters=_container_of(engine, "train-adapters"),
    )


def _fit_pools_to_this_machine(api_url: str, secrets: Path) -> None:
    """Change the pools' defaults as a host's owner would, and as little."""
    for pool in ("cpu", "gpu"):
        template = httpx.get(f"{api_url}/work_pools/{pool}").raise_for_status().json()["base_job_template"]
        variables = template["variables"]["properties"]
        volumes = variables["volumes"]["default"]
        variables["volumes"]["default"] = [item.replace(SECRET_FILE, str(secrets)) for item in volumes]
        if pool == "cpu":  # the images hold the real gate alone, and a few steps teach too little for it
            variables["volumes"]["default"].append(f"{LAX_GATE}:{GATE}:ro")
        variables["image_pull_policy"]["default"] = "Never"
        variables["auto_remove"]["default"] = False  # so that they can be looked at afterwards
        variables["container_create_kwargs"]["default"] = None  # no GPU here
        httpx.patch(f"{api_url}/work_pools/{pool}", json={"base_job_template": template}).raise_for_status()


def _container_of(engine: Engine, flow: str) -> dict[str, Any]:
    """Return the one container that ran `flow`, once it has ended."""
    label = f"label=io.prefect.flow-name={flow}"

    def ended() -> dict[str, Any] | None:
        (found,) = engine.inspect(*engine("ps", "--all", "--quiet", "--filter", label).split())
        return found if found["State"]["Status"] == "exited" else None

    return wait_for(ended, f"the container of {flow} to end")


def _is_up(api_url: str) -> bool:
    try:
        return httpx.get(f"{api_url}/health", timeout=2).is_success
    except httpx.TransportError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
