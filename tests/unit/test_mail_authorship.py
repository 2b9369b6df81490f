"""Mails that somebody else wrote from the author's account are dropped and counted, not learnt from."""

from __future__ import annotations

import pytest

from tests.unit.test_mail_pasted import INTRO, RULE, explained
from training.schemas import DropReason

SENDER = "Drew Fossum <drew.fossum@example.org>"


@pytest.mark.parametrize(
    ("subject", "body"),
    [
        ("Daily update for the meeting from Chris", INTRO),
        ("from Elizabeth", INTRO),
        ("A friend made this suggestion - what do you think?", INTRO),
        ("FYI - the answers posted on their web site", INTRO),
        ("Friday", f"{INTRO}\n\nMartha for Drew"),
        ("Friday", "Drew is available on Monday after ten, except for an hour at two."),
        ("Friday", "I moved the call into Drew's calendar for Monday at ten, as you asked."),
        ("Friday", f"I (Elizabeth) have just sent it. {INTRO}"),
        ("Ideas", f"2.   Moorings: {RULE}"),
        ("", RULE.replace("board", "boardD,s").replace("owner", "ownerD,s")),
    ],
)
def test_a_text_that_shows_another_writer_is_dropped(subject: str, body: str) -> None:
    result = explained(body, subject=subject, sender=SENDER)
    assert result.drop_reason is DropReason.UNCLEAR_QUOTE


@pytest.mark.parametrize(
    ("subject", "body"),
    [
        ("Update from Drew", INTRO),
        ("Re: Update from Karen", INTRO),
        ("Notes from Tuesday", INTRO),
        ("Update from Tuesday", INTRO),
        ("We made this!", INTRO),
        ("Update from Karen", f"{INTRO}\n\nDrew"),
        ("Friday", f"{INTRO} It is Part I (Introduction) of two."),
        ("Friday", "My colleague said that Drew is very sorry for what happened at the meeting."),
        ("Friday", f"We play D&D on Monday and O&M is on Tuesday; einen PhD, drei Jahre. {RULE}"),
        ("Call from Chris", INTRO),
        ("Docs get $ from Medicare", INTRO),
        ("Friday", f"{INTRO}\n\nDrew"),
        ("Friday", f"Thanks for Monday. {INTRO}"),
        ("Friday", f"1.   Moorings: {RULE}"),
        ("Friday", f"I think that the boardD,s rule is fine. {RULE}"),
    ],
)
def test_the_authors_own_mail_stays(subject: str, body: str) -> None:
    assert explained(body, subject=subject, sender=SENDER).kept
