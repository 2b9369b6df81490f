"""What `ownvoice check` prints of a data report."""

from __future__ import annotations

import pytest

from app.terminal import show_data_report
from training.schemas import DataReport

CHOSEN = "Chosen from the mail: epochs at most 3, rank 16; because 141 training mails make 16 steps an epoch."


@pytest.mark.parametrize("eligible", [True, False])
def test_the_choice_is_shown_where_a_training_would_use_it(
    eligible: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    report = DataReport(sent=200, usable=166, eligible=eligible, reason="Counted.", chosen=CHOSEN)
    show_data_report(report)
    assert (CHOSEN in capsys.readouterr().out) is eligible
