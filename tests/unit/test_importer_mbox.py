"""Where one message of an mbox ends and the next begins."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from store.importers import mbox
from training.errors import UnreadableMailbox

SEPARATOR = b"From anna@example.org Mon Feb  3 10:00:00 2020\n"


def split(content: bytes) -> list[bytes | None]:
    return list(mbox._split_messages(Path("x.mbox"), io.BytesIO(content).read))


def message(number: int, body: bytes = b"hello\n") -> bytes:
    return b"Subject: %d\n\n%s\n" % (number, body)


@pytest.mark.parametrize(
    "separator",
    [
        SEPARATOR,
        b"From 1789012345678901234@xxx Mon Feb 03 10:00:00 +0000 2020\n",
        b"From - Mon Feb 03 10:00:00 2020\n",
        b"From MAILER-DAEMON Mon Feb  3 10:00:00 2020\r\n",
        b"From anna@example.org\n",
    ],
)
def test_separators_of_many_programs_are_known(separator: bytes) -> None:
    got = split(separator + message(1) + separator + message(2))
    assert [raw.strip() for raw in got if raw] == [message(1).strip(), message(2).strip()]


@pytest.mark.parametrize(
    "line", [b"From now on we meet at ten.", b"From Monday 10:00 on\nAgenda: none", b"From here\nTo: there"]
)
def test_sentence_that_begins_with_from_is_no_separator(line: bytes) -> None:
    assert len(split(SEPARATOR + message(1, b"Hi\n\n" + line + b"\n") + SEPARATOR + message(2))) == 2


def test_quoted_from_lines_lose_one_mark(tmp_path: Path) -> None:
    path = tmp_path / "x.mbox"
    path.write_bytes(SEPARATOR + message(1, b">From a\n>>From b\n> From c\n"))
    (found,) = mbox.read_mbox([path])
    assert found.message is not None and found.message.body_text is not None
    assert found.message.body_text.split("\n")[:3] == ["From a", ">From b", "> From c"]


@pytest.mark.parametrize("block", [1, 7, 64, 4096])
def test_block_borders_do_not_matter(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"".join(SEPARATOR + message(n, b"From now\n" * n) for n in range(40))
    expected = split(content)
    monkeypatch.setattr(mbox, "BLOCK_BYTES", block)
    assert split(content) == expected and len(expected) == 40


def test_crlf_file_with_byte_order_mark_is_read() -> None:
    content = b"\xef\xbb\xbf\r\n" + (SEPARATOR + message(1) + SEPARATOR + message(2)).replace(b"\n", b"\r\n")
    assert len(split(content)) == 2


@pytest.mark.parametrize("block", [10_000, 4093, 999])
def test_giant_message_is_skipped_and_its_neighbours_are_kept(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mbox, "MAX_MESSAGE_BYTES", 50_000)
    monkeypatch.setattr(mbox, "BLOCK_BYTES", block)
    giant = message(2, b"x" * 500_000)
    got = split(b"".join(SEPARATOR + part for part in (message(1), giant, message(3), giant)))
    assert [raw is None for raw in got] == [False, True, False, True]
    assert got[2] is not None and got[2].startswith(b"Subject: 3")


@pytest.mark.parametrize("content", [b"\x7fELF\0\0\0", b"Dear all,\n", b""])
def test_file_that_is_no_mbox_is_refused(content: bytes) -> None:
    with pytest.raises(UnreadableMailbox, match=r"no mbox|is empty"):
        split(content)


@pytest.mark.parametrize(
    ("path", "folder"),
    [("a/Sent.mbox", "Sent"), ("a/Sent.mbox/mbox", "Sent"), ("a/Sent", "Sent"), ("a/Sent.mbox.gz", "Sent")],
)
def test_folder_is_read_off_the_file_name(path: str, folder: str) -> None:
    assert mbox.folder_name(Path(path)) == folder
