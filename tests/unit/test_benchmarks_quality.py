"""The quality benchmark without training anything: its ledger, its intervals, its page, its choice."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.benchmarks.quality import __main__ as quality
from tests.benchmarks.quality import average, masking, modes, precision, sizes, sweep, time_split
from tests.benchmarks.quality.ledger import Ledger, Run, code_version
from tests.benchmarks.quality.page import replace_sections, table
from tests.benchmarks.quality.paired import compare, mean_nll
from tests.benchmarks.quality.processes import do_missing
from training.dataset import Prepared
from training.schemas import DataReport, Example

RUN = Run("adapter", "david", {"learning_rate": 1e-3})
RESULT = {"validation": [[0, 3.0], [10, 2.5]], "held_out": [[2.5, 40]]}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "quality.jsonl", "code-1")


def result(validation: float, held_out: float = 2.4) -> dict[str, Any]:
    return {
        "steps": 30,
        "best_step": 20,
        "epochs": 3.0,
        "validation_emails": 12,
        "validation": [[0, 3.5], [10, validation + 0.2], [20, validation], [30, validation + 0.01]],
        "base": [[3.0, 50], [3.2, 50]],
        "held_out": [[held_out, 50], [held_out, 50]],
    }


def example(number: int, thread: str = "") -> Example:
    return Example(
        id=f"m{number}",
        thread_id=thread or f"t{number}",
        sent_at=None,
        instruction="Write an email",
        output="An invented reply of some words.",
    )


def test_a_finished_run_is_not_done_again_by_the_next_process(ledger: Ledger, tmp_path: Path) -> None:
    assert ledger.missing([RUN, RUN]) == [RUN]

    Ledger(tmp_path / "quality.jsonl", "code-1", "abc1234").add(RUN, RESULT)

    again = Ledger(tmp_path / "quality.jsonl", "code-1")
    assert again.missing([RUN]) == []
    assert again.find(RUN) == RESULT
    assert again.commits([RUN, Run("adapter", "pereira-s")]) == ["abc1234"]


def test_a_run_counts_only_for_the_code_and_the_settings_it_was_made_with(
    ledger: Ledger, tmp_path: Path
) -> None:
    ledger.add(RUN, RESULT)

    assert Ledger(tmp_path / "quality.jsonl", "code-2").find(RUN) is None
    assert ledger.find(Run("adapter", "david", {"learning_rate": 2e-3})) is None
    assert ledger.find(Run("adapter", "dasovich-j", {"learning_rate": 1e-3})) is None


def test_the_same_settings_spelt_in_another_order_are_the_same_run(ledger: Ledger) -> None:
    ledger.add(Run("adapter", "david", {"seed": 3, "lora": {"rank": 8, "alpha": 16}}), RESULT)

    assert ledger.find(Run("adapter", "david", {"lora": {"alpha": 16, "rank": 8}, "seed": 3})) == RESULT


def test_a_line_torn_by_a_killed_process_costs_that_run_only(ledger: Ledger, tmp_path: Path) -> None:
    ledger.add(RUN, RESULT)
    file = tmp_path / "quality.jsonl"
    file.write_text(file.read_text() + '{"code": "0123", "resu')

    assert Ledger(file, "code-1").find(RUN) == RESULT


def test_the_code_version_changes_with_the_measured_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    file = tmp_path / "training" / "lora.py"
    file.parent.mkdir()
    file.write_text("rate = 1\n")
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    monkeypatch.setattr("tests.benchmarks.quality.ledger.PROJECT_ROOT", tmp_path)
    before = code_version()
    assert before == code_version()

    file.write_text("rate = 2\n")

    assert code_version() != before


def test_a_run_that_fails_is_told_and_stays_to_be_done(ledger: Ledger, tmp_path: Path) -> None:
    unknown, before = Run("no such kind", "david"), os.environ.get("OMP_NUM_THREADS")

    failures = do_missing([unknown], ledger, tmp_path, processes=1)

    assert len(failures) == 1 and "KeyError" in failures[0]
    assert ledger.missing([unknown]) == [unknown]
    assert os.environ.get("OMP_NUM_THREADS") == before  # one thread is for the children alone


def test_long_mails_weigh_more_in_the_mean() -> None:
    assert mean_nll([[1.0, 30], [3.0, 10]]) == pytest.approx(1.5)


def test_a_gain_on_every_mail_has_an_interval_that_excludes_zero() -> None:
    worse = [[3.0 + 0.1 * n, 50.0] for n in range(20)]
    better = [[nll - 0.1, tokens] for nll, tokens in worse]

    found = compare(better, worse)

    assert found.mean == pytest.approx(-0.1)
    assert found.low == pytest.approx(-0.1) and found.high == pytest.approx(-0.1)


def test_a_gain_on_one_mail_of_many_proves_nothing() -> None:
    worse = [[3.0, 50.0] for _ in range(20)]
    better = [[2.0, 50.0], *worse[1:]]

    found = compare(better, worse)

    assert found.low < 0 and found.high == 0
    assert found == compare(better, worse)  # the draws are seeded


def test_losses_of_different_mails_are_not_compared() -> None:
    with pytest.raises(ValueError, match="not of the same mails"):
        compare([[3.0, 50]], [[3.0, 51]])


def test_writing_one_section_leaves_the_others_as_they_are() -> None:
    page = (
        "# Quality\n\nBy hand.\n\n## Gate calibration\n\nTheirs.\n\n### Inner\n\n```\n## no heading\n```\n\n"
        "## Mine\n\nold\n\n## Last\n\nkept\n"
    )

    written = replace_sections(page, {"Mine": "new\n"})

    assert written == page.replace("old", "new")
    assert replace_sections(written, {"Mine": "new"}) == written


def test_a_new_section_is_added_at_the_end_of_the_page() -> None:
    written = replace_sections(replace_sections("", {"First": "one"}), {"Second": "two"})

    assert written.startswith("# Quality\n")
    assert written.endswith("## First\n\none\n\n## Second\n\ntwo\n")


def test_a_part_of_which_nothing_is_measured_leaves_its_section_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "SHARED", tmp_path)
    page = tmp_path / "quality.md"
    page.write_text(f"# Quality\n\n## {precision.TITLE}\n\nMeasured last year.\n")
    arguments = ["--only", "precision", "--no-runs", "--work", str(tmp_path), "--out", str(page)]

    assert quality.main(arguments) == 0
    assert "Measured last year." in page.read_text()

    Ledger(tmp_path / "quality.jsonl", "code-1", "abc1234").add(precision.run_of("david", "bf16"), RESULT)
    assert quality.main([*arguments, "--code", "code-1"]) == 0
    assert "commit abc1234" in page.read_text() and "last year" not in page.read_text()
    assert "Not complete: 1 of 6 runs" in page.read_text()


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n|---|--:|\n| x\\|y | 1 |"


def test_the_sweep_asks_for_every_setting_and_mailbox_once_a_seed() -> None:
    keys = {run.key("code") for run in sweep.runs()}

    assert len(keys) == len(sweep.runs()) == (9 + 7) * 3
    assert all(run.settings["seed"] == 17 for run in sweep.runs()[:27])


def test_the_sweep_compares_a_setting_only_where_both_are_measured(ledger: Ledger) -> None:
    faster = {**sweep.CENTRE, "learning_rate": 2e-3}
    for mailbox, centre in (("david", 2.5), ("pereira-s", 2.7)):
        ledger.add(sweep.run_of(mailbox, 17, **sweep.CENTRE), result(centre))
    ledger.add(sweep.run_of("david", 17, **faster), result(2.45, held_out=2.6))
    # No partner in the centre: it would make the mean look better or worse than it is.
    ledger.add(sweep.run_of("dasovich-j", 17, **faster), result(9.0))

    row = next(line for line in sweep.section(ledger).splitlines() if line.startswith("| lr 2e-3"))

    assert "| 2 | -0.050 | 1 of 1 | +0.200 | – | – |" in row


def test_a_setting_that_diverged_is_told_and_has_no_mean(ledger: Ledger) -> None:
    wild = {**sweep.CENTRE, "learning_rate": 3e-3}
    ledger.add(sweep.run_of("david", 17, **wild), {"diverged": "The loss exploded.", "step": 3})

    row = next(line for line in sweep.section(ledger).splitlines() if line.startswith("| lr 3e-3"))

    assert "1, 1 diverged" in row


def test_sections_are_written_from_what_is_there(ledger: Ledger) -> None:
    for part in (sweep, precision, modes, masking):
        assert part.section(ledger)

    for kind, nll in (("bf16", 2.51), ("fp32", 2.50)):
        ledger.add(
            precision.run_of("david", kind), {"held_out": [[nll, 50]] * 20, "final_train_loss": nll - 1}
        )

    row = next(line for line in precision.section(ledger).splitlines() if line.startswith("| david"))
    assert "+0.010 (+0.010 to +0.010)" in row
    assert "not measured" in precision.section(ledger)


def test_what_masking_costs_is_told_apart_for_names_and_the_rest(ledger: Ledger) -> None:
    for masked, names in ((True, 5.0), (False, 4.0)):
        ledger.add(
            masking.run_of("david", masked),
            {
                "held_out": [[2.5 + names / 100, 50]] * 20,
                "rest": [[2.4, 49]] * 20,
                # Not every mail names somebody.
                "names": [*[[names, 10]] * 5, *[[0.0, 0]] * 15],
            },
        )

    row = next(line for line in masking.section(ledger).splitlines() if line.startswith("| david"))

    assert "| 50 of 1000 |" in row
    assert row.endswith(
        "| +0.010 (+0.010 to +0.010) | +0.000 (+0.000 to +0.000) | +1.000 (+1.000 to +1.000) |"
    )


def test_the_mean_is_compared_with_the_step_that_the_slice_would_have_kept(ledger: Ledger) -> None:
    run = average.runs()[0]
    looks = [("0", 3.0, 3.1), ("10", 2.5, 2.6), ("20", 2.6, 2.4), ("mean of 6 to 20", 2.4, 2.3)]
    ledger.add(
        run,
        {
            "averaged_from": 5,
            "looks": [
                {"look": name, "validation": validation, "held_out": [[held_out, 40]] * 3}
                for name, validation, held_out in looks
            ],
        },
    )

    row = next(line for line in average.section(ledger).splitlines() if line.startswith(f"| {run.mailbox}"))

    assert "| 2.500 (step 10) | 2.400 (6 to 20) | 2.600 | 2.300 | -0.300 (-0.300 to -0.300) | mean |" in row


def test_every_arm_of_a_retrain_is_in_the_table(ledger: Ledger) -> None:
    course = {"new": 94, "old": 102, "course": {"train_tokens": 1000}}
    ledger.add(
        modes.run_of("fossum-d", 17),
        {
            "first_sent": 328,
            "arrived": 193,
            "losses": {arm: {name: [[2.0, 50]] * 20 for name in modes.SETS} for arm in modes.ARMS},
            "trained": {arm: course for arm in modes.ARMS if arm != "base"},
        },
    )

    section = modes.section(ledger)

    assert all(f"| {title} |" in section for title in modes.ARMS.values())
    assert "94 + 102" in section


def test_new_held_out_mail_is_what_no_retrain_trained_on() -> None:
    def prepared(train: list[Example], held_out: list[Example], old: list[Example]) -> Prepared:
        report = DataReport.model_construct()
        return Prepared(tuple(train), tuple(held_out), report, tuple(old))

    old, borrowed, common = example(1), example(2), example(3)
    only_one, met = example(4), example(5, "shared")
    arms = {
        "first": prepared([example(6, "shared")], [old, borrowed], []),
        "replay": prepared([example(7)], [borrowed, common, only_one, met], [old]),
        "rolling": prepared([example(8)], [borrowed, common, met], [old]),
    }
    trained = {e.thread_id for found in arms.values() for e in found.train}

    assert time_split.unseen_by_all(arms, trained) == (common,)


def test_the_ledger_holds_numbers_and_settings_only(ledger: Ledger, tmp_path: Path) -> None:
    from tests.benchmarks.quality.measure import numbers

    losses = numbers([SimpleNamespace(example_id="m1", thread_id="t: a subject", nll=2.0, tokens=9)])  # type: ignore[list-item]
    ledger.add(RUN, {"held_out": losses})

    line = json.loads((tmp_path / "quality.jsonl").read_text())
    assert line["result"] == {"held_out": [[2.0, 9]]}
    assert set(line) == {"code", "commit", "kind", "mailbox", "settings", "result"}


def of_size(validation: float, best_step: int = 20) -> dict[str, Any]:
    return {**result(validation), "best_step": best_step, "train_tokens": 12_000}


def test_every_size_is_measured_with_every_limit_and_the_smallest_first() -> None:
    wanted = sizes.runs()
    assert len({run.key("code") for run in wanted}) == len(wanted) == 66
    assert [run.settings["mails"] for run in wanted[:9]] == [50] * 9
    for run in wanted:
        preset = Run("adapter", run.mailbox, run.settings["preset"]).config
        assert preset.auto == (), "nothing may be left to the data in a measurement of what to choose"


def test_a_limit_of_epochs_is_compared_on_the_sizes_that_both_were_measured_on(ledger: Ledger) -> None:
    ledger.add(sizes.run_of("david", 50, 3, 16), of_size(3.0))
    ledger.add(sizes.run_of("david", 50, 6, 16), of_size(2.9, best_step=30))
    ledger.add(sizes.run_of("david", 100, 6, 16), of_size(1.0))

    page = sizes.section(ledger)

    assert (
        "| david, 50 | 16 | 4,000 | 10 | 3.000 | 2.400 | 20, 2.0 | 2.900 | 2.400 | 30, 3.0 | – |  |  |"
        in page
    )
    assert "6 epochs -0.100, better in 1 of 1 sizes" in page and "10 epochs" not in page.split("against")[1]
    assert "david, 100" in page and "fossum-d" not in page


def test_a_size_that_diverged_is_told_and_compares_nothing(ledger: Ledger) -> None:
    ledger.add(sizes.run_of("david", 50, 3, 16), {"diverged": "loss 1e9 at step 3", "step": 3})

    page = sizes.section(ledger)

    assert "| diverged |" in page and "Nothing is measured yet" in page
