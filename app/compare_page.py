"""A comparison as one HTML page: nothing is loaded from anywhere, and every text in it is escaped."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from secrets import token_hex
from tempfile import NamedTemporaryFile

from app.compare_view import ScoreRow, cut_mark, score_rows
from app.plain_text import plain
from serving.base import voice_name
from training.comparison import ComparedVersion, Comparison
from training.errors import ConfigError
from training.schemas import Generated

_STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; --mark: #2a9d5c; --warn: #b7791f; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
h2 { font-size: 1rem; margin: 2.5rem 0 .75rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.answers { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
article { border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem; }
article.current { border-color: var(--mark); }
article h3 { font-size: .8rem; margin: 0 0 .5rem; opacity: .75; }
article p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
article .cut { color: var(--warn); font-size: .85rem; margin-top: .5rem; }
.scores { overflow-x: auto; }
table { border-collapse: collapse; }
caption { font-weight: 600; padding: .5rem 0; text-align: left; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .9rem; text-align: right;
  font-variant-numeric: tabular-nums; }
th:first-child { font-weight: 400; padding-left: 0; text-align: left; }
.notice { color: var(--warn); }
footer { font-size: .85rem; margin-top: 3rem; opacity: .75; }
"""


def default_path(reports: Path, user_id: str, now: datetime) -> Path:
    """Return where a report goes that nobody named: a new file in the person's folder, which an erasure
    deletes."""
    return reports / voice_name(user_id) / f"compare-{now:%Y%m%d-%H%M%S}-{token_hex(3)}.html"


def require_writable(path: Path) -> None:
    """Raise ConfigError when `path` cannot be a new file; asked before minutes of generating."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder. Give the name of an HTML file in it.")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"The folder {folder} does not exist. Make it, or choose another.")
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EEXIST, "it is no file")
        with NamedTemporaryFile(dir=folder):  # what may be written, root only learns by writing
            pass
    except OSError as exc:
        raise ConfigError(
            f"{path} cannot be written ({exc.strerror}). Choose another place with --html."
        ) from exc


def write_page(comparison: Comparison, path: Path, now: datetime) -> None:
    """Write the page whole, readable by its owner alone: it holds what models wrote in a person's voice.

    Raises ConfigError when the disk refuses.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        private = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(private, "w", encoding="utf-8") as file:
            file.write(html_page(comparison, now))
        aside.replace(path)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written ({exc.strerror}). Choose another place.") from exc
    finally:
        aside.unlink(missing_ok=True)


def html_page(comparison: Comparison, now: datetime) -> str:
    """Return the report as one HTML document."""
    title = f"{comparison.email}: {', '.join(version.title for version in comparison.versions)}"
    sections = [_section(comparison, number) for number in range(len(comparison.prompts))]
    tables = [_table(heading, comparison.versions, rows) for heading, rows in score_rows(comparison)]
    notice = f'<p class="notice">{_text(comparison.notice)}</p>' if comparison.notice else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="robots" content="noindex">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{_text(title)}</h1>
{notice}
<div class="scores">
{"".join(tables)}
</div>
{"".join(sections)}
<footer>
<p>Base model {_text(comparison.base_model)}, at most {comparison.max_tokens} tokens an answer; seeds
{comparison.seeds[0]} to {comparison.seeds[-1]}, the same for every version. Made {now:%Y-%m-%d %H:%M}.</p>
<p>The texts are generated. Nothing in them was sent by anybody.</p>
</footer>
</body>
</html>
"""


def _section(comparison: Comparison, number: int) -> str:
    articles = "".join(
        _article(version, version.answers[number], comparison.max_tokens) for version in comparison.versions
    )
    return (
        f"<section>\n<h2>{_text(comparison.prompts[number])}</h2>\n"
        f'<div class="answers">\n{articles}</div>\n</section>\n'
    )


def _article(version: ComparedVersion, answer: Generated, max_tokens: int) -> str:
    cut = "" if answer.stopped else f'<p class="cut">{_text(cut_mark(max_tokens))}</p>'
    kind = ' class="current"' if version.current else ""
    return (
        f"<article{kind}><h3>{_text(version.title)}</h3><p>{_text(answer.text.strip())}</p>{cut}</article>\n"
    )


def _table(heading: str, versions: Sequence[ComparedVersion], rows: Sequence[ScoreRow]) -> str:
    own = any(row.own for row in rows)
    names = [*(version.title for version in versions), *(["own mail"] if own else [])]
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{_text(row.label)}</th>'
        + "".join(f"<td>{_text(cell)}</td>" for cell in (*row.cells, *([row.own] if own else [])))
        + "</tr>\n"
        for row in rows
    )
    return (
        f"<table>\n<caption>{_text(heading)}</caption>\n<thead><tr><td></td>{head}</tr></thead>\n"
        f"<tbody>\n{body}</tbody>\n</table>\n"
    )


def _text(text: str) -> str:
    """Return `text` as it may stand in an element or a quoted attribute."""
    return escape(plain(text), quote=True)
