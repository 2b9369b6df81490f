"""Small mailboxes made on the spot: everything a mail can get wrong, in mails of one sender."""

from __future__ import annotations

from pathlib import Path

LONG_WORDS = 23_000
OWN = "The varnish is dry on the port side and I will start on the starboard side after lunch on Friday."


def write_mbox(path: Path, messages: list[bytes]) -> Path:
    """Write raw messages as an mbox."""
    separator = b"From someone@example.net Mon Mar 03 08:12:00 2025\n"
    path.write_bytes(b"".join(separator + message + b"\n\n" for message in messages))
    return path


def mail(
    sender: str,
    number: int,
    body: bytes | str = OWN,
    *,
    date: str | None = "Mon, 03 Mar 2025 08:12:00 +0000",
    subject: str | None = "varnish",
    headers: str = "",
) -> bytes:
    """Return one raw message."""
    head = f"Message-ID: <odd-{number}@example.net>\nFrom: {sender}\nTo: ines@example.com\n"
    head += f"Subject: {subject}\n" if subject is not None else ""
    head += f"Date: {date}\n" if date is not None else ""
    return (head + headers + "\n").encode() + (body if isinstance(body, bytes) else body.encode())


def weird_messages(sender: str) -> list[bytes]:
    """Return mails that are long, undecodable, dated oddly, without a subject or a date, or cut short."""
    utf8 = "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n"
    unknown = "Content-Type: text/plain; charset=klingon-1\n"
    cut = 'Content-Type: multipart/mixed; boundary="b"\n'
    return [
        mail(
            sender, 1, " ".join(f"plank {number}" for number in range(LONG_WORDS // 2)), subject="all planks"
        ),
        mail(
            sender,
            2,
            b"The \xff\xfe\x80 rope came in \xc3( two lengths and \x00 both are too short.",
            headers=utf8,
        ),
        mail(
            sender, 3, b"The rope \xe9\xe8 came in two lengths and both of them are short.", headers=unknown
        ),
        mail(sender, 4, date="Tue, 04 Mar 2025 09:00:00"),
        mail(
            sender,
            5,
            "Naive dates beside aware ones must still sort into one order.",
            date="5 Mar 2025 09:00:00 -0800",
        ),
        mail(
            sender,
            6,
            "This one was written before anybody here owned a computer.",
            date="Mon, 01 Jan 1979 00:00:00 +0000",
        ),
        mail(sender, 7, "A mail without any subject line still holds eight words.", subject=None),
        mail(sender, 8, "A mail without a date keeps its place in the file.", date=None),
        mail(sender, 9, "A date that nobody can read is no date at all here.", date="the day after tomorrow"),
        mail(
            sender,
            10,
            "--b\nContent-Type: text/plain\n\nA part that never ends, because the mail was cut.",
            headers=cut,
        ),
        mail(sender, 11, "Sent from nowhere.", subject="=?utf-8?q?=ff=fe?="),
    ]


def write_weird_mailbox(path: Path, sender: str) -> Path:
    return write_mbox(path, weird_messages(sender))
