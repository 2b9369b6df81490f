"""Real mailboxes against labels: nobody else's line in an example, and the author's words kept."""

from __future__ import annotations

import pytest

from tests.labels.check import check
from tests.labels.sample import MAILBOX_FOLDER, MAILBOXES, read_mailbox
from training.config import DataConfig
from training.dataset import prepare

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


@pytest.mark.shared_data
@pytest.mark.parametrize("mailbox", [name for name in MAILBOXES if name != "davis-pete"])
def test_no_kept_mail_of_a_whole_mailbox_holds_what_its_readers_found(mailbox: str) -> None:
    if not (MAILBOX_FOLDER / f"{mailbox}.jsonl").exists():
        pytest.skip(f"{mailbox} is not beside the repository (shared/data/mailboxes)")
    found = check(mailbox, ("census",))
    assert found.labelled >= 45
    assert found.foreign == {}
    lost = found.own_words - found.kept_words + found.unclear_words
    assert lost <= (1 - MIN_KEPT) * (found.own_words + found.unclear_words)


# mailbox → what the person is told, besides being refused
REFUSED = {
    "wh-bianchi-s": ("192 sent mails", "121 are empty", "more are needed"),
    "davis-pete": ("723 sent mails", "written by a machine, not by a person"),
    "black-t": ("110 sent mails", "forwarded without words of yours", "53 were found: 47 more are needed"),
}


@pytest.mark.shared_data
@pytest.mark.parametrize("mailbox", REFUSED)
def test_a_mailbox_without_enough_own_words_is_refused_with_its_numbers(mailbox: str) -> None:
    if not (MAILBOX_FOLDER / f"{mailbox}.jsonl").exists():
        pytest.skip(f"{mailbox} is not beside the repository (shared/data/mailboxes)")
    report = prepare(read_mailbox(mailbox), DataConfig()).report
    assert not report.eligible
    for words in REFUSED[mailbox]:
        assert words in report.reason
