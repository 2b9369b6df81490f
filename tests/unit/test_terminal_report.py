"""What is shown of a data report: by `ownvoice check`, and on its page in Prefect."""

from __future__ import annotations

import pytest

from app.terminal import show_data_report
from tasks.data import data_report_markdown
from training.schemas import DataReport

CHOSEN = "Chosen from the mail: epochs at most 3, rank 16; because 141 training mails make 16 steps an epoch."


@pytest.mark.parametrize("eligible", [True, False])
def test_the_choice_is_shown_where_a_training_would_use_it(
    eligible: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    report = DataReport(sent=200, usable=166, eligible=eligible, reason="Counted.", chosen=CHOSEN)
    show_data_report(report)
    assert (CHOSEN in capsys.readouterr().out) is eligible


@pytest.mark.parametrize(
    ("languages", "said"), [({"en": 150, "de": 16}, "Languages: en 150, de 16."), ({"en": 166}, "")]
)
def test_a_mailbox_of_several_languages_is_said_to_be_one_in_the_terminal_and_in_prefect(
    languages: dict[str, int], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = DataReport(sent=200, usable=166, eligible=True, reason="Counted.", languages=languages)
    show_data_report(report)
    for shown in (capsys.readouterr().out, data_report_markdown(report)):
        assert said in shown if said else "Languages" not in shown
