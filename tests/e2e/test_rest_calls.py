"""The calls of deployments/README.md, as they are printed there, against the real stack."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from store import users
from store.database import Database
from tests.e2e.stack import PATIENCE, SMALL, Running, wait_for
from training.settings import PROJECT_ROOT

pytestmark = pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("jq")),
    reason="the calls are made with curl and jq: install them",
)

PAGE = PROJECT_ROOT / "deployments" / "README.md"
IDA, JOAN = "ida@example.net", "joan@example.net"
KEY = "wish-7"
STARTED_S = 15.0
"""What the issue promises from a row with an event to its flow run; with slack for a busy machine."""
SLACK = 3.0


def blocks() -> dict[str, str]:
    """Return the page's shell blocks by the word after ```bash, in order, and its one SQL block as `sql`."""
    text = PAGE.read_text(encoding="utf-8")
    found = dict(re.findall(r"^```bash (\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    (found["sql"],) = re.findall(r"^```sql\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return found


class Shell:
    """One bash that reads the page block by block, so that a block sees the variables of those before it."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self._blocks = blocks()
        self._bash = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "no_proxy": "*", **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, block: str) -> list[str]:
        """Run a block; returns the lines that it printed. Asserts that its last command succeeded."""
        assert self._bash.stdin is not None and self._bash.stdout is not None
        self._bash.stdin.write(f'{self._blocks[block]}\necho "---END $?"\n')
        self._bash.stdin.flush()
        lines: list[str] = []
        while not (line := self._bash.stdout.readline()).startswith("---END"):
            assert line, f"bash ended in {block}: {lines}"
            lines.append(line.rstrip("\n"))
        assert line.split()[1] == "0", f"{block}: {lines}"
        return lines

    def set(self, name: str, value: str) -> None:
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{name}={value}\n")

    def value(self, name: str) -> str:
        assert self._bash.stdin is not None and self._bash.stdout is not None
        self._bash.stdin.write(f'echo "${name}"\n')
        self._bash.stdin.flush()
        return self._bash.stdout.readline().strip()

    def close(self) -> None:
        self._bash.kill()
        self._bash.communicate()


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preset that trains for many minutes."""
    preset = tmp_path_factory.mktemp("ida") / "endless.yaml"
    preset.write_text(SMALL.format(epochs=50, steps=2000))
    return preset


@pytest.fixture(scope="module")
def shell(running: Running, endless: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    running.import_sample(IDA)
    with running.database() as database:
        user_id = users.find_user(database, IDA).id
    opened = Shell(
        tmp_path_factory.mktemp("app"),
        {
            "API": running.written["prefectApiUrl"],
            "USER_ID": user_id,
            "CONFIG": str(endless),
            "KEY": KEY,
        },
    )
    opened.run("setup")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def started(shell: Shell) -> list[str]:
    """The HTTP status of starting the training."""
    shell.run("find")
    return shell.run("start")


def jobs_of(db: Database, email: str) -> list[dict[str, Any]]:
    with db.connection() as connection:
        rows = connection.execute(
            """
            SELECT j."id", j."status", j."flowRunId", j."modelName" FROM "FineTuningJob" j
            JOIN "User" u ON u."id" = j."userId" WHERE u."email" = %s ORDER BY j."createdAt"
            """,
            (email,),
        ).fetchall()
    return [dict(zip(("id", "status", "run", "model"), row, strict=True)) for row in rows]


def test_every_shell_block_of_the_page_is_run_here() -> None:
    assert PAGE.read_text(encoding="utf-8").count("```bash") == len(blocks()) - 1
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in blocks() if f'"{name}"' not in source] == []


def test_same_key_twice_is_one_run_and_one_job(
    started: list[str], shell: Shell, running: Running, db: Database
) -> None:
    assert started == ["201"]
    run = shell.value("RUN")
    assert shell.run("again") == ["200"]
    (job,) = wait_for(lambda: jobs_of(db, IDA), "the job of the run")
    assert job["run"] == run
    tagged = {"flow_runs": {"tags": {"all_": [f"user:{shell.value('USER_ID')}"]}}}
    assert [item["id"] for item in running.prefect_all("flow_runs/filter", tagged)] == [run]


@pytest.mark.usefixtures("started")
def test_misspelt_parameter_is_a_conflict(shell: Shell) -> None:
    assert shell.run("misspelt") == ["409"]


@pytest.mark.usefixtures("started")
def test_state_progress_and_training_can_be_read_while_it_trains(
    shell: Shell, running: Running, db: Database
) -> None:
    wait_for(lambda: "gpu RUNNING" in shell.run("children"), "the training to run", timeout_s=240 * PATIENCE)
    assert shell.run("read")[0] == "RUNNING"
    (job,) = jobs_of(db, IDA)
    percent, doing = shell.run("progress")
    assert 20 <= float(percent) <= running.job(job["id"])["progress"] and doing


@pytest.mark.usefixtures("started")
def test_cancel_ends_the_job_with_nothing_published(shell: Shell, running: Running, db: Database) -> None:
    wait_for(lambda: "gpu RUNNING" in shell.run("children"), "the training to run", timeout_s=240 * PATIENCE)
    assert shell.run("cancel") == ["201", "ACCEPT", "CANCELLING"]
    (job,) = jobs_of(db, IDA)
    running.wait_for_job(job["id"], "CANCELLED", timeout_s=120)
    assert jobs_of(db, IDA)[0]["model"] is None
    assert not running.folder(job["id"]).exists()
    wait_for(lambda: shell.run("read")[0] == "CANCELLED", "the flow run to end cancelled", timeout_s=60)
    assert shell.run("cancel")[:2] == ["200", "ABORT"]
    assert shell.run("again") == ["200"], "a key names its run for ever"


def test_waiting_row_and_its_event_start_a_training(shell: Shell, running: Running, db: Database) -> None:
    running.import_sample(JOAN)
    user, job = users.find_user(db, JOAN).id, "job-from-the-app"
    # The minute's schedule would start it too; only the event is looked at here.
    schedules = running.prefect("deployments/name/dispatch-jobs/every-minute")
    path = f"deployments/{schedules['id']}/schedules/{schedules['schedules'][0]['id']}"
    running.prefect_patch(path, {"active": False})
    try:
        with db.connection() as connection:
            connection.execute(blocks()["sql"], {"job": job, "user": user, "key": "wish-8"})
        shell.set("JOB", job)
        began = time.monotonic()
        assert shell.run("event") == ["204"]
        wait_for(lambda: jobs_of(db, JOAN)[0]["run"], "a flow run for the row", timeout_s=STARTED_S * SLACK)
        taken_s = time.monotonic() - began
        wait_for(lambda: jobs_of(db, JOAN)[0]["status"] != "PENDING", "the row to be taken up", timeout_s=60)
        print(f"event to flow run: {taken_s:.1f} s, to its first stage: {time.monotonic() - began:.1f} s")
    finally:
        running.prefect_patch(path, {"active": True})
        running.command("cancel", job, "--json")
