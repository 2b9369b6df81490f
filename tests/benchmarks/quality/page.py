"""docs/quality.md: each part of the benchmark writes its own section and leaves every other one as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping

INTRODUCTION = """# Quality

What the settings do, measured on real mailboxes that are not part of this repository. Loss is the mean
negative log-likelihood in nat per reply token; lower is better, and 0.10 nat is a perplexity 10 % lower.
"""
_HEADING = re.compile(r"^## +(.+?) *$", re.MULTILINE)


def replace_sections(page: str, sections: Mapping[str, str]) -> str:
    """Return `page` with the text under each heading of `sections` replaced, or added at the end.

    A section reaches from its `## ` line to the next one. `page` may be empty.
    """
    introduction, found = _split(page or INTRODUCTION)
    for title, text in sections.items():
        found[title] = text.strip("\n")
    parts = [introduction.strip("\n"), *(f"## {title}\n\n{text}" for title, text in found.items())]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; the first column is words, the others are numbers."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (header, *rows)]
    return "\n".join([lines[0], "|---" + "|--:" * (len(header) - 1) + "|", *lines[1:]])


def _split(page: str) -> tuple[str, dict[str, str]]:
    """Return what stands before the first section, and the sections by title in their order."""
    # A line that looks like a heading inside a fenced block is none.
    blank = re.sub(r"^```.*?^```", lambda block: re.sub(r"[^\n]", " ", block[0]), page, flags=re.M | re.S)
    headings = list(_HEADING.finditer(blank))
    ends = [*(heading.start() for heading in headings), len(page)][1:]
    sections = {
        page[heading.start(1) : heading.end(1)]: page[heading.end() : end].strip("\n")
        for heading, end in zip(headings, ends, strict=True)
    }
    return page[: headings[0].start()] if headings else page, sections
