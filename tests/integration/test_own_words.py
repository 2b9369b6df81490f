"""Real mailboxes against labels: nobody else's line in an example, and the author's words kept."""

from __future__ import annotations

import pytest

from tests.labels.check import check
from tests.labels.sample import MAILBOX_FOLDER, MAILBOXES

MIN_KEPT = 0.97
"""Share of the author's own words that examples keep (issue 5)."""


@pytest.mark.shared_data
@pytest.mark.parametrize("mailbox", MAILBOXES)
def test_examples_hold_the_authors_words_and_nobody_elses(mailbox: str) -> None:
    if not (MAILBOX_FOLDER / f"{mailbox}.jsonl").exists():
        pytest.skip(f"{mailbox} is not beside the repository (shared/data/mailboxes)")
    found = check(mailbox)
    assert found.labelled >= 12
    assert (found.foreign_lines, found.inexact if found.foreign_lines else []) == (0, [])
    assert found.kept_share >= MIN_KEPT
    # Dropping a mail is no way to keep it clean: few own words may be lost to doubt.
    assert found.unclear_words <= 0.03 * max(1, found.own_words)
