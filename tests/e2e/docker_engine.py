"""A Docker engine of its own for one test run, and an image for it that is built without pulling anything.

The engine listens on a socket in a temporary folder and keeps everything there; containers use the host's
network, so no bridge and no firewall rule is made. The base image is a Debian from debootstrap, because no
registry is asked. What a machine lacks is raised as `NoEngine`, a sentence for the test that then skips.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

from training.settings import PROJECT_ROOT

SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
"""An ordinary shell may lack the folders of system programs."""
DRIVERS = {"overlay2": 12, "vfs": 50}
"""Storage driver → gigabytes it needs free. vfs works everywhere and copies the whole tree (2.3 GB) for
each layer and twice for each container."""
START_S = 60.0
STOP_S = 60.0
COMMAND_S = 300.0
"""With vfs, `docker run` copies 5 GB before anything starts."""
BUILD_S = 900.0
"""The build takes 70 s on two idle cores with overlay2; 360 s with vfs beside other work (load 12)."""
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
"""What python:3.11-slim, the Dockerfile's own base, has as well."""


class NoEngine(Exception):
    """This machine cannot run the engine or build its image; the message says what is missing."""


@dataclass(frozen=True)
class Engine:
    """A running engine."""

    client: str
    socket: Path
    data: Path
    driver: str

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def __call__(self, *arguments: str | Path, timeout_s: float = COMMAND_S) -> str:
        """Run one command of the client; returns what it printed, asserts that it succeeded."""
        done = subprocess.run(
            [self.client, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=self._environment(),
            check=False,
        )
        assert done.returncode == 0, f"docker {arguments[0]} ended {done.returncode}\n{done.stderr[-4000:]}"
        return done.stdout

    def inspect(self, *names: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self("inspect", *names)) if names else []
        return found

    def import_folder(self, folder: Path, name: str) -> None:
        """Make an image of a folder's content."""
        packed = subprocess.Popen(["tar", "-C", str(folder), "-c", "."], stdout=subprocess.PIPE)
        subprocess.run(
            [self.client, "import", "-", name], stdin=packed.stdout, check=True, env=self._environment()
        )
        assert packed.wait() == 0

    def volume(self, name: str) -> Path:
        """Return the folder that holds a named volume's files."""
        return self.data / "volumes" / name / "_data"

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
        return {**kept, "DOCKER_HOST": self.url, "DOCKER_BUILDKIT": "1"}


@contextmanager
def docker_engine(folder: Path) -> Iterator[Engine]:
    """Start an engine in `folder`, and leave no process, mount or file of it. Raises NoEngine."""
    if os.geteuid() != 0:
        raise NoEngine("A Docker engine of our own needs root; run as root, or leave this test out.")
    daemon, client = _find("dockerd"), _find_client()
    folder.mkdir(parents=True, exist_ok=True)
    reasons = []
    for driver, needed_gb in DRIVERS.items():
        free_gb = shutil.disk_usage(folder).free // 10**9
        if free_gb < needed_gb:
            reasons.append(f"{driver} needs {needed_gb} GB of disk, {free_gb} are free")
            continue
        engine = Engine(client, folder / "docker.sock", folder / "data", driver)
        with (folder / "dockerd.log").open("ab") as log:
            # A test run that is killed takes its engine with it.
            command = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
            command += [daemon, "--iptables=false", "--bridge=none", f"--storage-driver={driver}"]
            command += ["--host", engine.url, "--data-root", str(engine.data)]
            command += ["--exec-root", str(folder / "exec"), "--pidfile", str(folder / "docker.pid")]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            if _answers(engine, process):
                yield engine
                return
        finally:
            _stop(engine, process, folder)
        reasons.append(f"{driver}: {_last_line(folder / 'dockerd.log')}")
    raise NoEngine("The Docker engine does not start here: " + "; ".join(reasons) + ".")


def make_base_image(engine: Engine, folder: Path, name: str) -> None:
    """Make a Debian with Python under `name`: 275 MB, 45 s. Raises NoEngine."""
    tree = folder / "debian"
    command = [_find("debootstrap"), "--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm", str(tree)]
    with (folder / "debootstrap.log").open("wb") as log:
        done = subprocess.run(
            command, stdout=log, stderr=log, env={**os.environ, "PATH": SYSTEM_PATH}, timeout=600, check=False
        )
    if done.returncode != 0:
        raise NoEngine(f"debootstrap made no Debian: {_last_line(folder / 'debootstrap.log')}.")
    engine.import_folder(tree, name)
    shutil.rmtree(tree)


def build_image(engine: Engine, folder: Path, *, base: str, target: str, name: str) -> None:
    """Build a target of our Dockerfile on top of `base`, with pip set up as it is on this machine.

    Raises NoEngine when this machine's pip knows no CPU build of torch.
    """
    torch_index = os.environ.get("TORCH_INDEX", "")
    if not torch_index and not version("torch").endswith("+cpu"):
        raise NoEngine("pip finds no CPU build of torch here; set TORCH_INDEX to the index that has them.")
    with lent_pip_configuration(folder) as secrets:
        engine(
            *("build", "--network", "host", "--progress", "plain"),
            *("--build-arg", f"BASE={base}", "--build-arg", f"TORCH_INDEX={torch_index}"),
            *(word for secret in secrets for word in ("--secret", secret)),
            *("--file", PROJECT_ROOT / "deployments" / "docker" / "Dockerfile"),
            *("--target", target, "--tag", name, PROJECT_ROOT),
            timeout_s=BUILD_S,
        )


@contextmanager
def lent_pip_configuration(folder: Path) -> Iterator[list[str]]:
    """Yield the build secrets that make pip inside a build find what this machine's pip finds.

    Folders of wheels are served on the loopback address while the build runs. Indexes that are folders are
    left out: their links lead out of the folder that would be served.
    """
    options = _pip_options()
    lines, secrets = ["[global]"], []
    with ExitStack() as stack:
        for option in ("index-url", "extra-index-url", "find-links", "trusted-host"):
            found = []
            for place in options.get(option, "").split():
                local = place.removeprefix("file://")
                if not local.startswith("/"):
                    found.append(place)
                elif option == "find-links" and Path(local).is_dir():
                    found.append(stack.enter_context(_served(Path(local))))
            if found:
                lines.append(f"{option} = {' '.join(found)}")
        if certificates := options.get("cert"):
            lines.append("cert = /run/secrets/ca.pem")
            secrets.append(f"id=ca.pem,src={certificates}")
        configuration = folder / "pip.conf"
        configuration.write_text("\n".join(lines) + "\n")
        yield [f"id=pip.conf,src={configuration}", *secrets]


def _pip_options() -> dict[str, str]:
    """Return pip's effective options; variables come last in its list, as they win."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = sorted(listed.splitlines(), key=lambda line: line.startswith(":env:"))
    pairs = [line.partition("=") for line in lines]
    return {name.rpartition(".")[2]: str(ast.literal_eval(value)) for name, _, value in pairs}


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: pip's own output is in the build's log."""


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def _find(program: str) -> str:
    found = shutil.which(program, path=SYSTEM_PATH)
    if found is None:
        package = {"dockerd": "docker.io"}.get(program, program)
        raise NoEngine(f"{program} is not installed; `apt-get install {package}`.")
    return found


def _find_client() -> str:
    """Return a client that builds with BuildKit: the engine's neighbour, or one with the buildx plugin."""
    beside = Path(_find("dockerd")).with_name("docker")
    for candidate in (str(beside), str(beside.parent.parent / "bin" / "docker"), _find("docker")):
        if shutil.which(candidate) is None:
            continue
        asked = [candidate, "version", "--format", "{{.Client.Version}}"]
        answer = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        plugin = subprocess.run([candidate, "buildx", "version"], capture_output=True, check=False)
        # Until version 23 the client spoke BuildKit itself.
        if plugin.returncode == 0 or (answer and int(answer.split(".")[0]) < 23):
            return candidate
    raise NoEngine("No Docker client here builds with BuildKit; `apt-get install docker-buildx`.")


def _answers(engine: Engine, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        asked = subprocess.run(
            [engine.client, "version"], capture_output=True, env=engine._environment(), check=False
        )
        if asked.returncode == 0:
            return True
        time.sleep(0.2)
    return False


def _stop(engine: Engine, process: subprocess.Popen[bytes], folder: Path) -> None:
    if process.poll() is None:
        # An engine that no longer answers ends by its signal all the same.
        with suppress(AssertionError, subprocess.TimeoutExpired):
            if containers := engine("ps", "--all", "--quiet").split():
                engine("rm", "--force", *containers)
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for place in reversed(mounted):
        if place.startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", place], check=False)
    # Tens of thousands of files: Python takes several times as long.
    subprocess.run(["rm", "-rf", str(engine.data)], check=False)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][-300:] if lines else "it said nothing"
