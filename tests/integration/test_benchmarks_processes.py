"""The processes of a long measurement end with the one that started them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from tests.e2e.stack import wait_for
from training.settings import PROJECT_ROOT

# Children import it too, as the module that started them.
A_RUN_OF_AN_HOUR = """
import sys, time
from pathlib import Path
from tests.benchmarks.quality import measure, processes
from tests.benchmarks.quality.ledger import Ledger, Run

def an_hour(run, work):
    (work / "begun").touch()
    try:
        time.sleep(3600)
    finally:
        (work / "tidied").touch()

measure.KINDS["an hour"] = an_hour
processes.CLEANUP_S = 2.0
if __name__ == "__main__":
    work = Path(sys.argv[1])
    processes.do_missing([Run("an hour", "nobody", {})], Ledger(work / "ledger.jsonl", "code"), work, 1)
"""


def test_children_of_a_measurement_that_is_killed_tidy_up_and_end(tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(A_RUN_OF_AN_HOUR)
    driver = psutil.Popen(
        [sys.executable, script, tmp_path],
        env={"PYTHONPATH": str(PROJECT_ROOT)},
        cwd=PROJECT_ROOT,
        stderr=subprocess.DEVNULL,
    )
    wait_for((tmp_path / "begun").exists, "the run to begin")
    children = driver.children(recursive=True)
    assert children
    driver.kill()
    driver.wait()
    wait_for(lambda: not any(child.is_running() for child in children), "the children to end", 30)
    assert (tmp_path / "tidied").exists()
