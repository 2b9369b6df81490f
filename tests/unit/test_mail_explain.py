"""`explain` accounts for every character of a mail: own, cut for a reason, or blank."""

from __future__ import annotations

import json

from training.mail.explain import Explanation, explain
from training.schemas import DropReason, Mail

GMAIL = "On Tue, 3 Mar 2026 at 10:12, Bob Lee <bob@x.example> wrote:"
OWN = "Monday works for me, let us meet at ten in the office."


def explained(body: str = "", **fields: object) -> Explanation:
    return explain(Mail(id="m", thread_id="t", position=0, body_text=body, **fields))  # type: ignore[arg-type]


def test_every_cut_has_a_reason_and_its_place_in_the_decoded_text() -> None:
    result = explained(f"{OWN}\r\n\r\n{GMAIL}\r\n> lunch?\r\n\r\nSent from my iPhone\r\n")
    assert [(cut.reason, result.text[cut.text_start : cut.text_end]) for cut in result.cut] == [
        ("attribution", GMAIL),
        ("quote", "> lunch?"),
        ("footer", "Sent from my iPhone"),
    ]
    assert [result.text[start:end] for start, end in result.own] == [OWN]
    assert (result.own_words, result.kept, result.drop_reason) == (OWN, True, None)


def test_own_and_cut_together_are_the_whole_text() -> None:
    result = explained(
        f"Hi Bob,\n\n{GMAIL}\n> Can we meet Monday?\n\n{OWN}\n\n> And the budget?\n\nStill waiting.\n\n"
        "Anna\n\n-- \nAnna Smith\nCTO\n"
    )
    covered = [False] * len(result.text)
    for start, end in [*((cut.text_start, cut.text_end) for cut in result.cut), *result.own]:
        assert not any(covered[start:end])
        covered[start:end] = [True] * (end - start)
    left = "".join(char for char, seen in zip(result.text, covered, strict=True) if not seen)
    assert left.strip() == ""


def test_a_dropped_mail_says_why_and_still_shows_its_cuts() -> None:
    result = explained(
        "Ok.\n\n-----Original Message-----\nFrom: Bob\nSent: Monday\nTo: Anna\nSubject: x\n\ndo"
    )
    assert (result.kept, result.drop_reason) == (False, DropReason.TOO_SHORT)
    assert [cut.reason for cut in result.cut] == ["reply"]


def test_what_the_command_prints_is_plain_json_without_the_body() -> None:
    result = explained("", body_html=f"<p>{OWN}</p><blockquote type=cite>lunch?</blockquote>")
    assert json.loads(json.dumps(result.as_dict())) == {
        "own_words": OWN,
        "cut": [{"reason": "quote", "text_start": len(OWN) + 2, "text_end": len(result.text)}],
        "kept": True,
        "drop_reason": None,
    }


def test_an_empty_mail_is_explained_too() -> None:
    result = explained("")
    assert (result.own_words, result.cut, result.drop_reason) == ("", (), DropReason.EMPTY)
