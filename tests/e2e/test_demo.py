"""`make demo`: what a newcomer sees."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e.conftest import MainJob
from tests.e2e.stack import MERRIN, SAMPLE, TRAIN_S, CommandLine, Running
from training.dataset import NEUTRAL_INSTRUCTIONS

HEADLINES = (
    "1  Starting PostgreSQL, the Prefect server and two workers",
    "2  Reading merrin.mbox",
    "3  Training",
    "4  The same request, two writers",
    "5  What you have",
)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--mbox", SAMPLE), "Whose mailbox is it?"), (("--user", MERRIN), "Which mailbox is it?")],
    ids=["no user", "no mailbox"],
)
def test_demo_asks_for_what_is_missing_before_it_starts_anything(
    tmp_path: Path, arguments: tuple[str | Path, ...], said: str
) -> None:
    answer = CommandLine(tmp_path)("demo", *arguments, code=2)
    assert answer.err.startswith(said)
    assert answer.err.rstrip().endswith("make demo MBOX=path USER_EMAIL=me@x.org")
    assert list(tmp_path.iterdir()) == []


def test_demo_on_a_missing_mailbox_says_so_before_it_starts_anything(tmp_path: Path) -> None:
    answer = CommandLine(tmp_path)("demo", "--mbox", tmp_path / "lost.mbox", "--user", MERRIN, code=1)
    assert "lost.mbox does not exist" in answer.err
    assert list(tmp_path.iterdir()) == []


def test_demo_ends_with_everything_a_newcomer_wants_to_see(main_job: MainJob, running: Running) -> None:
    """The second training of this person, so the data are there and an adapter is already in use."""
    quick = running.command.with_variables(OWNVOICE_TRAIN_CONFIG="cpu-smoke")
    out = quick("demo", timeout_s=TRAIN_S).out
    places = [out.index(headline) for headline in HEADLINES]
    assert places == sorted(places)
    part = dict(
        zip("12345", (out[a:b] for a, b in zip(places, [*places[1:], len(out)], strict=True)), strict=True)
    )

    assert "197 already there" in part["2"]
    assert f"{main_job.report['usable']}" in part["2"] and "dropped: near-duplicate" in part["2"]
    assert re.search(r"(PROMOTED|KEPT_CURRENT): .*nat per token", part["3"])
    for instruction in NEUTRAL_INSTRUCTIONS:
        assert instruction in part["4"]
    panels = part["4"].count("base model"), len(re.findall(r"emailai-\w+:v\d", part["4"]))
    assert panels == (2, 2)
    (latest, *_) = running.command("jobs", MERRIN, "--json").json
    assert latest["id"] != main_job.job["id"] and latest["version"] == 2
    assert re.search(r"held-out loss +\d\.\d\d → \d\.\d\d nat per token", part["5"])
    assert f"version 2, {latest['adapterSize'] / 1e6:.1f} MB" in part["5"]
    assert f"{running.written['uiUrl']}/runs/flow-run/{latest['flowRunId']}" in part["5"]
    assert f"ownvoice write {MERRIN}" in part["5"] and f"ownvoice show {latest['id']}" in part["5"]
