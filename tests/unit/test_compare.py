"""`ownvoice compare` without an engine: what may be asked, what is scored, what is shown."""

from __future__ import annotations

import re
import stat
from datetime import datetime
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from app.compare import read_prompts
from app.compare_page import default_path, html_page, require_writable, write_page
from app.compare_view import score_rows, show_comparison
from training.comparison import (
    COMPARED_INSTRUCTIONS,
    JUDGE_INSTRUCTIONS,
    MAX_PROMPT_CHARS,
    MAX_PROMPTS,
    ComparedVersion,
    Comparison,
    OwnMail,
    measure_answers,
    parse_prompts,
    parse_versions,
)
from training.errors import ConfigError
from training.gate_config import GateConfig
from training.panel import Persona, panel_texts, read_panel
from training.schemas import CheckRole, Example, GateCheck, GateDecision, Generated, Outcome

NOW = datetime(2026, 3, 1, 10, 15)
SCRIPT = "<script>alert('marsupilami')</script>"


def said(*texts: str, stopped: bool = True) -> tuple[Generated, ...]:
    return tuple(Generated(text=text, stopped=stopped) for text in texts)


def decision() -> GateDecision:
    def check(name: str, met: bool) -> GateCheck:
        return GateCheck(
            metric="voice", name=name, value=0.6, limit=0.5, relation=">=", met=met,
            role=CheckRole.VOTE, label="the voice score",
        )  # fmt: skip

    return GateDecision(
        outcome=Outcome.PROMOTED,
        reason="Good.",
        numbers={"gain": 0.3141, "voice": 0.6},
        checks=(check("voice", True), check("gain", True), check("leaks", False)),
    )


def comparison(prompt: str = "Write about the boat", *versions: ComparedVersion) -> Comparison:
    shown = versions or (
        ComparedVersion(title="base", answers=said("Dear Sir, the boat is ready.")),
        ComparedVersion(
            title="version 2 (in use)", version=2, current=True, outcome=Outcome.PROMOTED,
            decision=decision(), answers=said("ahoy, boat's done", stopped=False),
        ),
        ComparedVersion(title="version 1", version=1, answers=said("ahoy. done.")),
    )  # fmt: skip
    return Comparison(
        user_id="u1", email="anna@example.net", base_model="tiny", max_tokens=64, prompts=(prompt,),
        seeds=(7,), versions=shown,
    )  # fmt: skip


# ---- what may be asked -------------------------------------------------------------------------------


def test_the_prompts_are_fixed_at_least_six_and_never_those_of_the_judge() -> None:
    assert len(COMPARED_INSTRUCTIONS) >= 6
    assert set(COMPARED_INSTRUCTIONS).isdisjoint(JUDGE_INSTRUCTIONS)


def test_a_file_of_prompts_is_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfWrite to Zo\xc3\xab\r\n\r\n  Say no\tpolitely  \n")
    assert read_prompts(path) == ("Write to Zoë", "Say no\tpolitely")


BAD_FILES = {
    "empty": (b"\n \n", "holds no prompt"),
    "too many": (b"marsupilami\n" * (MAX_PROMPTS + 1), "holds 51 prompts; at most 50"),
    "too long": (b"ok\n" + b"m" * (MAX_PROMPT_CHARS + 1), "Line 2 of prompts.txt has 2,001 characters"),
    "binary": (b"\xff\xfe\x00marsupilami", "is not UTF-8 text"),
    "escapes": (b"marsupilami \x1b[31mred", "Line 1 of prompts.txt holds control characters"),
    "huge": (b"x" * 1_000_000, "has more than"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_FILES)
def test_a_bad_file_of_prompts_is_one_sentence_without_its_text(bad: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(BAD_FILES[bad][0])
    with pytest.raises(ConfigError) as caught:
        read_prompts(path)
    message = str(caught.value)
    assert BAD_FILES[bad][1] in message and "marsupilami" not in message and "\n" not in message


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none.txt", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(ConfigError, match=words):
            read_prompts(path)


def test_as_many_prompts_as_are_allowed_of_the_longest_kind_pass() -> None:
    longest = "ö" * MAX_PROMPT_CHARS
    assert len(parse_prompts("\n".join([longest] * MAX_PROMPTS), "x")) == MAX_PROMPTS


def test_versions_keep_their_order_and_come_once() -> None:
    assert parse_versions("3, 2,3") == (3, 2)


@pytest.mark.parametrize("bad", ["", "2,", "two", "-1", "0", "1.5", "2;3", "9" * 400, "²", "1_0"])
def test_what_is_no_list_of_versions_is_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match="version numbers like 2,3") as caught:
        parse_versions(bad)
    assert len(str(caught.value)) < 120


# ---- scores ------------------------------------------------------------------------------------------


def example(text: str, number: int) -> Example:
    return Example(id=f"m{number}", thread_id=f"t{number}", instruction="Write", output=text)


def own_mail(persona: Persona) -> OwnMail:
    return OwnMail(persona.train, persona.held_out)


def others(persona: Persona) -> tuple[str, ...]:
    return panel_texts(GateConfig(), (*persona.train, *persona.held_out))


@pytest.fixture(scope="module")
def panel() -> tuple[Persona, ...]:
    return read_panel()


def plain(number: int) -> str:
    return (
        f"Dear Sir or Madam,\n\nI am writing to inform you that the meeting number {number} has been moved "
        "to Thursday. Please let me know whether this is convenient for you.\n\nBest regards,\n[Your Name]"
    )


def test_the_version_that_writes_like_the_person_scores_above_the_one_that_does_not(
    panel: tuple[Persona, ...],
) -> None:
    kit = next(persona for persona in panel if persona.name == "kit")
    prompts = tuple(f"prompt {n}" for n in range(6))
    near = said(*(e.output for e in kit.held_out[:6]))
    found = measure_answers(
        Comparison(
            user_id="kit", email="kit@example.net", base_model="tiny", max_tokens=64, prompts=prompts,
            seeds=tuple(range(6)),
            versions=(
                ComparedVersion(title="base", answers=said(*map(plain, range(6)))),
                ComparedVersion(title="version 2", version=2, answers=near),
                ComparedVersion(title="version 1", version=1, answers=said(*map(plain, range(10, 16)))),
            ),
        ),
        own_mail(kit), said(*map(plain, range(20, 28))), others(kit), GateConfig(),
    )  # fmt: skip
    base, good, poor = found.versions
    assert base.voice == pytest.approx(0)
    assert good.voice is not None and poor.voice is not None and good.voice > 0.7 > 0.2 > poor.voice
    assert good.style_distance is not None and poor.style_distance is not None
    assert good.style_distance < poor.style_distance
    assert found.own_mails == len(kit.train) and found.notice == ""


def test_too_little_mail_leaves_the_scores_out_and_says_so() -> None:
    few = OwnMail([example("a mail", n) for n in range(30)], [example("a mail", n) for n in range(9)])
    found = measure_answers(comparison(), few, (), (), GateConfig())
    assert all(version.voice is None for version in found.versions)
    assert "9 newer ones" in found.notice and "10 of each are needed" in found.notice


def test_mail_of_nothing_but_greetings_leaves_the_scores_out_and_says_so(panel: tuple[Persona, ...]) -> None:
    frames = [example("Hi Tom,\n\nBest,\nAnna", number) for number in range(30)]
    empty = OwnMail(frames, frames[:12])
    found = measure_answers(comparison(), empty, said("x y z"), others(panel[0]), GateConfig())
    assert found.versions[1].voice is None and found.notice.startswith("No scores:")


def test_a_weak_judge_is_said_to_be_one(panel: tuple[Persona, ...]) -> None:
    kit = panel[1]
    few = OwnMail(kit.train[:12], kit.held_out[:10])
    found = measure_answers(comparison(), few, said(plain(1), plain(2)), others(kit), GateConfig())
    assert found.versions[1].voice is not None and found.notice.startswith("The judge is weak here (12 own")


def test_numbers_that_nobody_stored_or_measured_are_a_dash() -> None:
    (_, stored), (_, measured) = score_rows(comparison())
    rows = {row.label: row.cells for row in (*stored, *measured)}
    assert rows["outcome"] == ("–", "PROMOTED", "–")
    assert rows["gain over the base, nat per token"] == ("–", "0.31", "–")
    assert rows["style gap closed"] == ("–", "–", "–")
    assert rows["thresholds met"] == ("–", "2 of 3", "–")
    assert rows["taken for the person's (0 to 1)"] == ("–", "–", "–")
    assert rows["ended by themselves"] == ("1 of 1", "0 of 1", "1 of 1")


# ---- the terminal ------------------------------------------------------------------------------------


def on_terminal(found: Comparison, width: int) -> list[str]:
    console = Console(file=StringIO(), width=width, color_system=None)
    show_comparison(found, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_answers_stand_beside_each_other_on_a_wide_terminal_and_below_on_a_narrow_one() -> None:
    wide, narrow = on_terminal(comparison(), 140), on_terminal(comparison(), 80)
    assert any("Dear Sir" in line and "boat's done" in line and "ahoy. done." in line for line in wide)
    places = [
        next(n for n, line in enumerate(narrow) if words in line) for words in ("Dear Sir", "boat's", "done.")
    ]
    assert places == sorted(places) and len(set(places)) == 3


def test_an_answer_that_was_cut_is_marked() -> None:
    lines = on_terminal(comparison(), 140)
    assert sum("[cut at 64 tokens]" in line for line in lines) == 1


def test_neither_markup_nor_escape_sequences_of_a_model_are_obeyed() -> None:
    odd = ComparedVersion(title="base", answers=said("\x1b]0;owned\x07 \u202e [bold red]loud[/] [/]"))
    text = "\n".join(on_terminal(comparison("[red]prompt[/red]", odd), 100))
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text
    assert "[bold red]loud[/] [/]" in text and "[red]prompt[/red]" in text


# ---- the page ----------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_no_text_of_a_prompt_an_answer_or_an_address_becomes_markup() -> None:
    odd = ComparedVersion(
        title=f"base{SCRIPT}", answers=said(f"</p>{SCRIPT}<img src=x onerror=alert(1)>\x00")
    )
    found = comparison(f"Write {SCRIPT}", odd).model_copy(
        update={"email": f'"><{SCRIPT}@x.org', "base_model": SCRIPT, "notice": SCRIPT}
    )
    html = html_page(found, NOW)
    page = Page(html)
    assert "script" not in page.tags and "img" not in page.tags and "\x00" not in html
    assert page.text.count(SCRIPT) >= 6
    assert not any(name.startswith("on") for name, _ in page.attributes)


@pytest.mark.parametrize(
    "turn", [*"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"]
)
def test_nothing_on_the_page_turns_the_direction_of_a_text(turn: str) -> None:
    odd = ComparedVersion(title="base", answers=said(f"the {turn}liam"))
    html = html_page(comparison(f"Write {turn}", odd), NOW)
    assert turn not in html and "\ufffdliam" in html


def test_the_page_loads_nothing_and_follows_light_and_dark() -> None:
    html = html_page(comparison(), NOW)
    page = Page(html)
    assert not {"link", "img", "script", "iframe", "object"} & set(page.tags)
    assert not {"src", "href", "srcset"} & {name for name, _ in page.attributes}
    assert not re.search(r"url\(|@import|https?:", html)
    assert "default-src 'none'" in html and "color-scheme: light dark" in html


def test_the_page_shows_every_answer_the_scores_and_what_was_cut() -> None:
    text = Page(html_page(comparison(), NOW)).text
    for words in (
        "Dear Sir, the boat is ready.",
        "ahoy, boat's done",
        "[cut at 64 tokens]",
        "2 of 3",
        "0.31",
    ):
        assert words in text


def test_the_page_is_readable_by_its_owner_alone_even_where_another_file_was(tmp_path: Path) -> None:
    named, default = tmp_path / "report.html", default_path(tmp_path / "reports", "Anna/../x", NOW)
    named.write_text("old")
    named.chmod(0o644)
    for path in (named, default):
        write_page(comparison(), path, NOW)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert "ahoy" in path.read_text()
    assert (
        default.is_relative_to(tmp_path / "reports") and stat.S_IMODE(default.parent.stat().st_mode) == 0o700
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "reports"]


def test_two_reports_of_one_second_are_two_files(tmp_path: Path) -> None:
    first, second = (default_path(tmp_path, "u1", NOW) for _ in range(2))
    assert first != second and first.parent == second.parent
    assert all(path.name.startswith("compare-20260301-101500-") for path in (first, second))


def test_a_place_that_cannot_be_written_is_a_sentence_before_anything_is_generated(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for path, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "report.html", "does not exist"),
        (file / "report.html", "does not exist"),
        (Path("/proc/report.html"), "cannot be written"),
        (Path("/dev/null"), "no file"),
    ):
        with pytest.raises(ConfigError, match=words):
            require_writable(path)
