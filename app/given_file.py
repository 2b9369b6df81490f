"""Reading a file that a person named on the command line: at most so much of it, or one sentence why not."""

from __future__ import annotations

from pathlib import Path

from training.errors import OwnvoiceError


def read_given(path: Path, most_bytes: int, *, error: type[OwnvoiceError], hint: str) -> bytes:
    """Return the file's first `most_bytes` bytes and one more when there is more.

    Raises `error` when it cannot be read, with the path, the reason and `hint`, which says what to give.
    """
    try:
        with path.open("rb") as file:
            return file.read(most_bytes + 1)
    except FileNotFoundError:
        reason = "does not exist"
    except IsADirectoryError:
        reason = "is a folder"
    except OSError as exc:
        reason = f"cannot be read ({exc.strerror})"
    raise error(f"{path} {reason}. {hint}")
