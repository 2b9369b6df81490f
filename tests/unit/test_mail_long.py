"""Own words below a quote that is longer than what is read of a body."""

from __future__ import annotations

import pytest

from training.mail.decode import MAX_SCANNED_CHARS
from training.mail.explain import explain
from training.schemas import Mail

GMAIL = "On Tue, 3 Mar 2026 at 10:12, Bob Lee <bob@x.example> wrote:"
OWN = "Monday is fine with me, see you at ten in the office."


@pytest.mark.parametrize("line", ["> quoted words\n", ">\n", "  > > nested words\n"])
def test_own_words_below_a_marked_quote_of_any_length_are_read(line: str) -> None:
    body = f"Hi Bob,\n\n{GMAIL}\n{line * (3 * MAX_SCANNED_CHARS // len(line))}\n{OWN}\n"
    result = explain(Mail(id="m", thread_id="t", position=0, body_text=body))
    assert result.own_words == f"Hi Bob,\n\n{OWN}"
    assert len(result.text) < MAX_SCANNED_CHARS


def test_a_short_quote_keeps_all_its_lines() -> None:
    body = f"{OWN}\n\n{GMAIL}\n" + "".join(f"> line {number}\n" for number in range(401))
    assert explain(Mail(id="m", thread_id="t", position=0, body_text=body)).text == body


def test_own_words_below_a_huge_html_quote_are_read() -> None:
    quote = "<p>quoted words and a few more</p>" * 9_000
    body = f"<p>Hi Bob,</p><blockquote type='cite'>{quote}</blockquote><p>{OWN}</p>"
    result = explain(Mail(id="m", thread_id="t", position=0, body_html=body))
    assert result.own_words == f"Hi Bob,\n\n{OWN}"
