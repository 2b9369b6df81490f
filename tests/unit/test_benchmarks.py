"""`make bench` itself, without measuring anything: its parts, its JSON, its page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from app import local
from store.importers.mbox import read_mbox
from tests.benchmarks import cohort, cohort_speed, fixed_costs, flow_runs, mailboxes, report, run, train
from tests.benchmarks.child import describe_failure, run_child
from tests.benchmarks.cohort import FEW_STEPS, PEOPLE, STEPS, compare, describe_group
from tests.benchmarks.job import describe
from tests.benchmarks.machine import (
    OthersWatch,
    PressureWatch,
    describe_machine,
    read_pressure,
)
from tests.benchmarks.step_clock import StepClock, seconds_for
from training.config import load_train_config
from training.errors import ConfigError, OwnvoiceError
from training.machine_memory import peak_process_bytes
from training.schemas import Job, JobMetrics, JobStatus, Outcome
from training.settings import PROJECT_ROOT, Settings

MACHINE = {
    "processor": "Z80",
    "cores": 2,
    "memory_bytes": 8_000_000_000,
    "system": "Linux 7",
    "python": "3.11.7",
    "packages": {"torch": "2.13.0"},
    "commit": "abc1234",
}
LOADED = "loaded %s in %.1f s"
TRAINED = "%d of %d adapters trained on %s"
QUIET = {"before_avg10": 0.4, "after_avg10": 3.0, "stalled_share": 0.01}
BUSY = {**QUIET, "before_avg10": 64.0}
TRL = {
    "mails_per_step": 8,
    "allocator": "the system's",
    "attention": "eager",
    "sampling": "random",
    "gradient_checkpointing": True,
}
PARAMETERS = 125_000_000
RUNS = [
    {
        "trainer": trainer,
        "tokens_per_second": rate,
        "fed_tokens_per_second": fed,
        "peak_rss_bytes": peak,
        **({"parameters": PARAMETERS} if trainer == "ours" else TRL),
    }
    for trainer, rate, fed, peak in (
        ("ours", 900.0, 600.0, 2_000_000_000),
        ("trl_best", 300.0, 330.0, 5_000_000_000),
        ("ours", 700.0, 500.0, 1_900_000_000),
        ("trl_default", 70.0, 100.0, 3_000_000_000),
        ("ours", 800.0, 550.0, 1_900_000_000),
        ("trl_best", 200.0, 220.0, 4_000_000_000),
        ("ours", 600.0, 400.0, 1_900_000_000),
        ("trl_default", 50.0, 80.0, 3_000_000_000),
    )
]
PEAK_FLOPS = 1e12
JOB = Job(
    id="job-1",
    user_id="user-1",
    status=JobStatus.COMPLETED,
    version=1,
    base_model="smollm2-135m",
    training_emails=141,
    timings={"train": 60.0, "extract": 0.2},
    created_at=datetime(2026, 11, 22, 9, 0, 0, tzinfo=UTC),
    completed_at=datetime(2026, 11, 22, 9, 1, 18, tzinfo=UTC),
    metrics=JobMetrics(
        held_out_nll_base=3.329, held_out_nll_adapter=2.563, held_out_emails=24, train_seconds=45.0
    ),
)


def ended_after(*seconds: float, run: str | None = None) -> list[Job]:
    """Return completed jobs whose rows are a second apart and that ended so long after the first row; each
    has a flow run of its own unless `run` names one."""
    made = JOB.created_at
    assert made is not None
    return [
        JOB.model_copy(
            update={
                "id": f"job-{number}",
                "flow_run_id": run or f"run-{number}",
                "outcome": Outcome.PROMOTED,
                "created_at": made + timedelta(seconds=number),
                "completed_at": made + timedelta(seconds=end),
                "metrics": JobMetrics(train_seconds=5.0),
            }
        )
        for number, end in enumerate(seconds)
    ]


SEPARATE = describe_group(ended_after(40, 120, 80), base_loads=3)
TOGETHER = describe_group(ended_after(30, 45, 60, run="cohort"), base_loads=1)
SPEED: dict[str, Any] = {
    "epochs": 3,
    "mailboxes": [
        {"name": name, "examples": 10, "tokens": tokens}
        for name, tokens in (("david", 36_000), ("pereira-s", 72_000), ("dasovich-j", 54_000))
    ],
    "cohorts": [
        {
            "people": people,
            "ways": {
                way: {
                    "adapters_per_hour": 3600 * people / seconds,
                    "seconds": seconds,
                    "calculated_seconds": 1.01 * seconds,
                    "measured_to_the_end": people == 3,
                    "peak_rss_bytes": 2_000_000_000,
                }
                for way, seconds in (("warm", 60.0 * people), ("pinned", 50.0 * people))
            },
        }
        for people in (1, 4, 3)
    ],
    "trl": [
        {"name": name, "seconds": seconds, "measured_to_the_end": False, "attention": "eager", "steps": 7}
        for name, seconds in (("david", 150.0), ("pereira-s", 300.0), ("dasovich-j", 200.0))
    ],
}
IMPORTED = {"mails": 1139, "mails_per_second": 4000.0, "peak_rss_bytes": 60_000_000}
FIGURES: dict[str, dict[str, Any]] = {
    "train": {
        "mailbox": "david",
        "base_model": "smollm2-135m",
        "examples": 141,
        "runs": RUNS,
        "gemm": {"threads": 2},
        "trl_attention": {"sdpa": 240.0, "eager": 260.0},
        **train.compare(RUNS),
        **train.roofline(PEAK_FLOPS, RUNS),
    },
    "fixed": {
        "base_model": "smollm2-135m",
        "seconds": dict.fromkeys(fixed_costs.NAMES, 0.5),
        "all_seconds": 3.5,
        "adapter_bytes": 19_600_000,
        "gguf_bytes": 9_800_000,
        "runs": [{}, {}, {}],
    },
    "cohort_speed": {**SPEED, **cohort_speed.compare(SPEED)},
    "import": {"mailbox": "wh-rice-c", "jsonl": IMPORTED, "mbox": IMPORTED},
    "job": {
        "mailbox": "david",
        **describe(JOB, 80.0),
        "row_to_running_seconds": 2.5,
        "row_to_first_stage_seconds": 3.5,
        "up_seconds": 9.0,
    },
    "cohort": {
        "people": 3,
        "mailbox": "merrin (sample)",
        "steps": 6,
        "single": {
            "row_to_end_seconds": 30.0,
            "train_step_seconds": 5.0,
            "other_seconds": 26.5,
            "adapters_per_hour": 120.0,
            "row_to_running_seconds": 2.5,
            "base_loads": 1,
        },
        "separate": SEPARATE,
        "cohort": {**TOGETHER, "row_to_running_seconds": 4.2, "dispatched_by": "event"},
        **compare(SEPARATE, TOGETHER),
    },
    "clean": {
        "mailbox": "fossum-d",
        "first": {"mails_per_second": 700.0},
        "second": {"mails_per_second": 900.0},
        "peak_rss_bytes": 90_000_000,
    },
    "scan": {
        "new_mails": 10_000,
        "limit_seconds": 2.0,
        "sizes": [
            {
                "people": 10_000,
                "mails": 200_000,
                "notices": 500,
                "jobs": 300,
                "scan_seconds": 0.21,
                "skip_seconds": 0.01,
                "cohort_seconds": 0.005,
                "mail_blocks_read": 0,
                "database_bytes": 90_000_000,
            },
            {"people": 1_000_000, "not_measured": "needs 15 GB of disk, 3 GB are free"},
        ],
    },
}


@pytest.fixture(scope="module")
def parts() -> dict[str, ModuleType]:
    return run.load_parts()


def assembled(pressure: dict[str, float] | None = QUIET, **changes: Any) -> dict[str, Any]:
    settings = {"quick": False, "now": datetime(2026, 11, 22, tzinfo=UTC), **changes}
    found = settings.pop("found", FIGURES)
    return report.assemble("make bench", MACHINE, pressure, found, **settings)


def test_every_part_has_a_title_a_measurement_and_a_table(parts: dict[str, ModuleType]) -> None:
    assert list(parts) == ["train", "fixed", "cohort_speed", "import", "job", "cohort", "clean", "scan"]
    for part in parts.values():
        assert part.TITLE and callable(part.measure) and callable(part.table)


@pytest.mark.parametrize("name", FIGURES)
def test_rows_of_a_table_are_as_wide_as_its_header(name: str, parts: dict[str, ModuleType]) -> None:
    header, *rows = parts[name].table(FIGURES[name])
    assert rows
    assert {len(row) for row in rows} == {len(header)}


def test_figures_are_one_json_object() -> None:
    figures = json.loads(json.dumps(assembled()))
    assert figures["job"]["other_seconds"] == 35.0
    assert figures["job"]["other_within_limit"] is True
    assert figures["job"]["row_to_end_seconds"] == 78.0
    assert list(figures["job"]["stage_seconds"]) == ["extract", "train"]
    assert figures["cpu_pressure"] == QUIET
    assert figures["quiet"] is True


def test_page_shows_the_command_the_machine_and_every_part(parts: dict[str, ModuleType]) -> None:
    page = report.to_markdown(assembled(), parts)
    assert "    make bench\n" in page
    assert "Z80, 2 cores, 8 GB" in page
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## Training",
        "## Fixed costs",
        "## Adapters an hour",
        "## Import",
        "## One job",
        "## Cohort",
        "## Cleaning",
        "## Scan",
    ]
    assert (
        "| TRL, best CPU configuration | 250 | 300, 200 | 12% | 14% | 5.00 GB "
        "| 3.5x as fast (3.0, 4.0), 0.40x the memory |" in page
    )
    assert "3.329 → 2.563" in page


def test_page_shows_only_what_was_measured(parts: dict[str, ModuleType]) -> None:
    page = report.to_markdown(assembled(found={"clean": FIGURES["clean"]}), parts)
    assert "## Cleaning" in page and "## Import" not in page


@pytest.mark.parametrize(
    ("pressure", "quick", "warning"),
    [
        (QUIET, False, "The machine was quiet"),
        (BUSY, False, "Run it again on a quiet machine"),
        (None, False, "does not say"),
        (QUIET, True, "no figure here may be quoted"),
    ],
)
def test_page_says_whether_its_figures_may_be_quoted(
    pressure: dict[str, float] | None, quick: bool, warning: str, parts: dict[str, ModuleType]
) -> None:
    assert warning in report.to_markdown(assembled(pressure, quick=quick), parts)


def test_neighbour_during_one_run_of_many_makes_the_figures_worthless() -> None:
    runs = [{**RUNS[0], "others_share": 0.01}, {**RUNS[1], "others_share": 0.4}]
    figures = assembled(found={"train": {"runs": runs}})
    assert figures["others_share"] == 0.4
    assert figures["quiet"] is False


def test_own_work_is_not_taken_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # In 10 s on 2 processors 10 s were worked, 6 of them by us: others had 4 of 20.
    readings = iter([(100.0, 50.0, 1.0), (110.0, 60.0, 7.0)])
    monkeypatch.setattr(OthersWatch, "_read", staticmethod(lambda: next(readings)))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert OthersWatch().share() == 0.2


def test_group_is_timed_from_its_first_row_to_its_last_end() -> None:
    assert SEPARATE == {
        "jobs": 3,
        "flow_runs": 3,
        "base_loads": 3,
        "wall_seconds": 120.0,
        "train_step_seconds": 15.0,
        "other_seconds_per_job": 35.0,
        "adapters_per_hour": 90.0,
        "outcomes": {"PROMOTED": 3},
    }
    assert (TOGETHER["wall_seconds"], TOGETHER["flow_runs"]) == (60.0, 1)
    assert compare(SEPARATE, TOGETHER) == {"times_as_fast": 2.0}


def test_page_sets_separate_runs_beside_the_cohort(parts: dict[str, ModuleType]) -> None:
    page = report.to_markdown(assembled(found={"cohort": FIGURES["cohort"]}), parts)
    assert "| from the first row to the last end | 30.0 s | 120.0 s | 60.0 s |" in page
    assert "| base loads | 1 | 3 | 1 |" in page
    assert "| everything else, a job | 26.5 s | 35.0 s | 15.0 s |" in page
    assert "| newest row to running flow | 2.5 s |  | 4.2 s by the event |" in page


def test_preset_of_the_cohorts_is_valid_and_short(tmp_path: Path) -> None:
    preset = tmp_path / "few-steps.yaml"
    preset.write_text(FEW_STEPS)
    config = load_train_config(str(preset))
    assert (config.max_steps, config.base_model) == (STEPS, train.BASE_MODEL)
    assert PEOPLE == 8


def test_base_loads_are_counted_by_the_line_that_the_training_logs() -> None:
    source = (PROJECT_ROOT / "tasks" / "train.py").read_text(encoding="utf-8")
    assert f'"{LOADED}"' in source, "the benchmark counts a line that no training logs"
    lines = [LOADED % ("smollm2-135m", 1.234), "6 steps on 12 mails", LOADED % ("smollm2-135m", 20)]
    assert flow_runs.count_base_loads(lines) == 2


def prefect_with(
    monkeypatch: pytest.MonkeyPatch, runs: dict[str, list[str]], *, scheduled: tuple[str, ...] = ()
) -> None:
    """Stand in for a Prefect server that has these runs, each with its log lines."""

    def answer(api_url: str, kind: str, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        if kind == "flow_runs":
            return [{"id": run, "auto_scheduled": run in scheduled} for run in runs]
        (run,) = wanted["logs"]["flow_run_id"]["any_"]
        return [{"message": line} for line in runs[run]]

    monkeypatch.setattr(flow_runs, "_filter", answer)
    monkeypatch.setattr(flow_runs, "LOGS_S", 0.0)


def test_base_loads_are_not_counted_before_the_whole_log_has_arrived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = (PROJECT_ROOT / "flows" / "train_adapters.py").read_text(encoding="utf-8")
    assert f'"{TRAINED}"' in source
    whole = [LOADED % ("smollm2-135m", 1), TRAINED % (1, 1, "smollm2-135m")]
    prefect_with(monkeypatch, {"a": whole, "b": whole})
    assert flow_runs.training_logs("api", ["job-1", "job-2"]) == [whole, whole]
    prefect_with(monkeypatch, {"a": whole, "b": whole[:1]})
    with pytest.raises(OwnvoiceError, match="1 of 2 training runs have not logged their end"):
        flow_runs.training_logs("api", ["job-1", "job-2"])


def test_start_by_the_minute_is_not_taken_for_one_by_the_event(monkeypatch: pytest.MonkeyPatch) -> None:
    started = {
        "by-minute": ["2 jobs on smollm2-135m in flow run x"],
        "by-event": ["nothing", "in flow run y"],
    }
    prefect_with(monkeypatch, started, scheduled=("by-minute",))
    found = {run: flow_runs.started_by("api", run) for run in ("x", "y", "z")}
    assert found == {"x": "schedule", "y": "event", "z": "unknown"}


def test_stack_that_fails_is_stopped_and_its_home_deleted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, Path] = {}

    def fail(settings: Settings, **_: Any) -> None:
        assert settings.home.is_dir() and os.environ["OWNVOICE_HOME"] == str(settings.home)
        seen["started"] = settings.home
        raise OwnvoiceError("No port is free.")

    def stop(settings: Settings) -> None:
        seen["stopped"] = settings.home

    monkeypatch.setenv("DATABASE_URL", "postgresql://real.example.org/app")
    monkeypatch.setattr(local, "up", fail)
    monkeypatch.setattr(local, "down", stop)
    with pytest.raises(OwnvoiceError, match="No port"):
        cohort.measure(tmp_path, True, lambda done, total, text: None)
    assert seen["started"] == seen["stopped"] and not seen["started"].exists()
    assert os.environ["DATABASE_URL"] == "postgresql://real.example.org/app"


def test_missing_trl_is_said_with_the_command_that_brings_it(parts: dict[str, ModuleType]) -> None:
    alone = [run for run in RUNS if run["trainer"] == "ours"]
    figures = {**FIGURES["train"], **train.compare(alone), "runs": alone, "trl_missing": train.INSTALL_TRL}
    assert figures["ours_to"] == {}
    assert "pip install --constraint constraints.txt" in report.to_markdown(
        assembled(found={"train": figures}), parts
    )


def test_failed_part_is_named_and_the_others_are_shown(parts: dict[str, ModuleType]) -> None:
    found = {**FIGURES, "job": {"error": "The Prefect server | stopped"}}
    page = report.to_markdown(assembled(found=found), parts)
    assert "Not measured: The Prefect server \\| stopped" in page
    assert "## Cleaning" in page


def test_failed_part_costs_the_exit_code_but_not_the_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse(work: Path, quick: bool, progress: object) -> dict[str, Any]:
        raise ConfigError("There is no mailbox.")

    module = run.load_parts(["clean"])["clean"]
    monkeypatch.setattr(module, "measure", refuse)
    monkeypatch.setattr(run.signal, "signal", lambda *_: None)
    assert run.main(["--only", "clean", "--out", str(tmp_path / "docs" / "performance.md")]) == 1
    assert json.loads(capsys.readouterr().out)["clean"]["error"] == "There is no mailbox."
    assert "Not measured" in (tmp_path / "docs" / "performance.md").read_text()


def test_unknown_part_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.main(["--only", "train,speed"])
    said = capsys.readouterr().err
    assert (
        "there is no part speed; choose from train, fixed, cohort_speed, import, job, cohort, clean, scan"
        in said
    )


def test_failure_quotes_our_own_errors_only() -> None:
    assert describe_failure(OwnvoiceError("Say it.")) == "Say it."
    try:
        raise ValueError("Dear Anna, my password is")
    except ValueError as exc:
        assert describe_failure(exc).startswith("ValueError at test_benchmarks.py:")


def test_child_that_fails_is_named_with_its_last_words() -> None:
    with pytest.raises(
        OwnvoiceError, match=r"tests\.benchmarks\.train_data ended with exit code 1 .*KeyError"
    ):
        run_child("tests.benchmarks.train_data", {}, lambda done, total, text: None)


def test_pressure_is_read_as_the_kernel_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "cpu"
    file.write_text("some avg10=12.50 avg60=1.00 avg300=0.00 total=1000\nfull avg10=0.00 total=0\n")
    assert read_pressure(file) == (12.5, 1000)
    watch = PressureWatch(file)
    file.write_text("some avg10=50.00 avg60=1.00 avg300=0.00 total=10000000000\n")
    assert watch.summary() == {"before_avg10": 12.5, "after_avg10": 50.0, "stalled_share": 1.0}
    assert PressureWatch(tmp_path / "none").summary() is None


def test_first_step_warms_up_and_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 110.0, 111.0, 112.0])
    monkeypatch.setattr("tests.benchmarks.step_clock.time.perf_counter", lambda: next(times))
    clock, embedding = StepClock(), Embedding()
    clock.watch_inputs(embedding)
    clock.start()
    clock.start()
    for tokens in (500, 900, 1300):
        embedding.feed(300)
        clock.step_done(tokens)
    assert clock.figures() == {
        "tokens_per_second": 400.0,
        "fed_tokens_per_second": 300.0,
        "seconds": 2.0,
        "tokens": 800,
        "steps": 2,
        "first_step_seconds": 10.0,
        "first_step_tokens": 500,
    }
    # A longer run at this pace: 10 s for the first 500 tokens, 400 a second for the other 4,000.
    assert seconds_for(clock.figures(), 4500) == 20.0


class Embedding:
    """As much of a torch module as the clock needs."""

    def register_forward_hook(self, hook: Callable[[object, tuple[Any, ...], object], None]) -> None:
        self._hook = hook

    def feed(self, tokens: int) -> None:
        self._hook(self, (SimpleNamespace(numel=lambda: tokens),), None)


def test_trainers_are_compared_within_neighbouring_pairs_and_the_median_counts() -> None:
    assert train.compare(RUNS)["ours_to"] == {
        "trl_best": {"tokens_per_second": 3.5, "each_pair": [3.0, 4.0], "peak_rss_bytes": 0.4},
        "trl_default": {"tokens_per_second": 11.0, "each_pair": [10.0, 12.0], "peak_rss_bytes": 0.67},
    }


def test_roof_is_the_peak_over_four_flop_a_weight() -> None:
    roof = train.roofline(PEAK_FLOPS, RUNS)["roofline"]
    assert roof["tokens_per_second"] == 2000.0
    assert roof["shares"]["ours"] == {"tokens": 0.375, "fed_tokens": 0.256}


def test_people_are_dealt_to_trainers_by_tokens() -> None:
    people = [{"name": name, "tokens": tokens} for name, tokens in (("a", 1), ("b", 6), ("c", 3), ("d", 5))]
    assert [[p["name"] for p in hand] for hand in cohort_speed.deal(people, 2)] == [["b", "a"], ["d", "c"]]
    assert cohort_speed.deal(people[:1], 2) == [people[:1]]


def test_whole_training_is_calculated_from_its_measured_parts() -> None:
    # 20 s of process, of which 2 + 3 s were steps: 15 s of everything else.
    measured = {
        "first_step_seconds": 2.0,
        "first_step_tokens": 200,
        "seconds": 3.0,
        "tokens_per_second": 100.0,
    }
    trainer = {"process_seconds": 20.0, "people": [measured]}
    assert cohort_speed.whole_seconds(trainer, [{"tokens": 10_200}]) == 15 + 2 + 100


def test_trl_is_charged_for_all_epochs_and_not_for_the_steps_it_took(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried: list[str] = []

    def few_steps(work: Path, steps: int, report: Any, *, attention: str) -> dict[str, Any]:
        tried.append(attention)
        if attention == "eager":
            raise OwnvoiceError("ended with exit code -9 and no figures")
        figures = {"first_step_seconds": 2.0, "first_step_tokens": 100, "seconds": 7.0}
        return {**figures, "tokens_per_second": 100.0, "attention": attention}

    monkeypatch.setattr(cohort_speed, "run_trl", few_steps)
    person = {"name": "david", "work": str(tmp_path), "examples": 141, "epochs": 3, "tokens": 10_100}
    found = cohort_speed.run_trl_person(person, False, False, "eager", lambda *_: None)
    assert tried == ["eager", "sdpa"]
    assert found["seconds"] == pytest.approx(found["process_seconds"] - 9 + 2 + 100, abs=0.1)


def test_cohorts_are_compared_with_trl_on_the_same_people() -> None:
    one, four, three = cohort_speed.compare(SPEED)["compared"]
    assert one == {"people": 1, "faster_way": "pinned", "trl_adapters_per_hour": 24.0, "ours_to_trl": 3.0}
    assert four["trl_adapters_per_hour"] == 18.0  # 150 + 300 + 200 + 150 s: the first mailbox again
    assert three["ours_to_trl"] == pytest.approx(650 / 150, abs=0.01)


def test_page_has_the_title_of_its_file_and_keeps_what_people_wrote_below_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    module = run.load_parts(["clean"])["clean"]
    monkeypatch.setattr(module, "measure", lambda work, quick, progress: FIGURES["clean"])
    monkeypatch.setattr(run.signal, "signal", lambda *_: None)
    page = tmp_path / "orchestration.md"
    kept = f"{report.KEEP}\n\n## By hand\n\nA sentence.\n"
    page.write_text(f"# Old\n\nold figures\n\n{kept}")
    for _ in range(2):  # and no empty line more each time
        assert run.main(["--only", "clean", "--out", str(page)]) == 0
        written = page.read_text()
        assert written.startswith("# Orchestration\n")
        assert "old figures" not in written and "## Cleaning" in written
        assert written.endswith(f"|\n\n{kept}")


@pytest.mark.parametrize("name", ["performance", "orchestration"])
def test_pages_in_the_repository_have_their_own_titles(name: str) -> None:
    page = (PROJECT_ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {name.capitalize()}\n")


def test_sizes_reach_only_the_parts_that_take_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[object] = []

    def measure(work: Path, quick: bool, progress: object, rounds: int | None = None) -> dict[str, Any]:
        seen.append(rounds)
        return FIGURES["train"]

    parts = run.load_parts(["train", "clean"])
    monkeypatch.setattr(parts["train"], "measure", measure)
    monkeypatch.setattr(parts["clean"], "measure", lambda work, quick, progress: FIGURES["clean"])
    monkeypatch.setattr(run.signal, "signal", lambda *_: None)
    assert run.main(["--only", "train,clean", "--rounds", "5", "--full-trl"]) == 0
    assert seen == [5]


def test_generated_mail_is_the_same_each_time_and_survives_the_way_through_mbox(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    mailboxes.write_generated(first, 30)
    mailboxes.write_generated(second, 30)
    assert first.read_bytes() == second.read_bytes()
    lines = mailboxes.Mailbox("generated", first)
    mbox = mailboxes.write_mbox(lines, tmp_path / "converted.mbox")
    written, read = mailboxes.read_sent(lines), mailboxes.read_sent(mbox)
    assert len(written) == 30
    assert all(found.message is not None for found in read_mbox([mbox.path]))
    assert [m.body_text.split() for m in read] == [m.body_text.split() for m in written]
    assert [m.sent_at for m in read] == [m.sent_at for m in written]


def test_sample_stands_in_where_the_real_mailboxes_are_not_at_hand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mailboxes, "SHARED", tmp_path)
    mailbox = mailboxes.find_mailbox("david")
    assert mailbox.name == "merrin (sample)"
    assert len(mailboxes.read_sent(mailbox)) == 197


def test_machine_is_described_without_host_or_path() -> None:
    machine = describe_machine()
    assert {*machine} == {*MACHINE}
    assert os.uname().nodename not in machine["system"].split()
    assert peak_process_bytes() > 10_000_000


def test_help_comes_without_loading_torch() -> None:
    code = (
        "import sys, tests.benchmarks.run as r; r.load_parts(); "
        "sys.exit('torch' in sys.modules or 'trl' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=mailboxes.PROJECT_ROOT, check=True)
