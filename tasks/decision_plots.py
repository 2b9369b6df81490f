"""The two pictures of a decision, as small SVG drawings: loss by step, and the voice between base and person.

Written by hand, because matplotlib takes a second to import and draws the same in many times the bytes. They
hold numbers and our own words, never anything of a mail. The paper is white on purpose: a picture in an <img>
cannot know whether the page around it is dark.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape

from training.decision_words import LossSeries, VoiceScores

WIDTH = 440
"""Pixels; two stand beside each other on a wide page."""
LOSS_HEIGHT, VOICE_HEIGHT = 230, 120
INK, FAINT_INK, FAINT, PAPER = "#374151", "#6b7280", "#d1d5db", "#ffffff"
TRAINING, VALIDATION = "#9ca3af", "#d97706"
LINES = {"base": "#6b7280", "adapter": "#2563eb", "in use": "#7c3aed"}
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 352, 34, 196
"""Edges of the plot of the loss; held-out labels stand to its right."""
_BASE_X, _PERSON_X = 110, 330
"""Where 0 and 1 stand on the ruler."""
_BEYOND = 0.28
"""How far below 0 or above 1 the ruler reaches; what lies farther stands at its end, with its number."""
_LABEL_HEIGHT = 13


def as_image(svg: str, alt: str) -> str:
    """Return a Markdown image with the drawing inside it.

    A data URL is what the UI of Prefect 3.8 shows: its sanitiser takes `data:image/…` as the source of an
    image and drops <svg> elements.
    """
    return f"![{alt}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def draw_loss(series: LossSeries) -> str:
    """Return the loss by step: training, validation, and held-out losses as horizontal lines."""
    points = [*series.training, *series.validation]
    last = max([step for step, _ in points], default=0) or 1
    low, high = _range([loss for _, loss in points] + [nll for _, nll in series.held_out])

    def x(step: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * step / last

    def y(loss: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (loss - low) / (high - low)

    parts = [
        _text(_LEFT, 16, "Loss by step", bold=True),
        _text(_LEFT + 86, 16, "nat per reply token", FAINT_INK),
    ]
    for loss in (low, (low + high) / 2, high):
        parts.append(_line(_LEFT, y(loss), _RIGHT, y(loss), FAINT))
        parts.append(_text(_LEFT - 6, y(loss) + 4, f"{loss:.1f}", anchor="end"))
    parts.append(_text(_LEFT, _BOTTOM + 14, "0"))
    parts.append(_text(_RIGHT, _BOTTOM + 14, f"step {last}", anchor="end"))
    if series.training:
        parts.append(_path([(x(step), y(loss)) for step, loss in series.training], TRAINING))
    if series.validation:
        parts.append(_path([(x(step), y(loss)) for step, loss in series.validation], VALIDATION))
        parts += [_dot(x(step), y(loss), VALIDATION) for step, loss in series.validation]
    parts += [
        _line(_LEFT, y(nll), _RIGHT, y(nll), LINES[whose], dash="" if whose == "adapter" else "5 3")
        for whose, nll in series.held_out
    ]
    for at, (whose, nll) in _apart([(y(nll), line) for line in series.held_out for nll in line[1:]]):
        parts.append(_text(_RIGHT + 6, at + 4, f"{whose} {nll:.2f}", LINES[whose]))
    legend = [("training", TRAINING, series.training), ("validation", VALIDATION, series.validation)]
    at = float(_LEFT)
    for name, colour, drawn in legend:
        if drawn:
            parts += [_dot(at + 4, LOSS_HEIGHT - 9, colour), _text(at + 12, LOSS_HEIGHT - 5, name)]
            at += 84
    if series.held_out:
        parts += [_line(at, LOSS_HEIGHT - 9, at + 18, LOSS_HEIGHT - 9, LINES["adapter"])]
        parts += [_text(at + 24, LOSS_HEIGHT - 5, "held-out mail")]
    return _drawing(LOSS_HEIGHT, parts)


def draw_voice(scores: VoiceScores) -> str:
    """Return the ruler: the base at 0, the person at 1, the adapter and the one in use between them."""

    def x(score: float) -> float:
        return _BASE_X + (_PERSON_X - _BASE_X) * min(1 + _BEYOND, max(-_BEYOND, score))

    axis = 62
    parts = [_text(_LEFT, 16, "Voice score", bold=True)]
    if scores.only_shown:
        parts.append(_text(_LEFT + 82, 16, "too little to judge by: only shown", FAINT_INK))
    parts.append(_line(x(-_BEYOND), axis, x(1 + _BEYOND), axis, FAINT))
    parts.append(_line(x(0), axis, x(1), axis, INK, width=2))
    for score, name in ((0.0, "base"), (1.0, "person")):
        parts.append(_line(x(score), axis - 6, x(score), axis + 6, INK, width=2))
        parts.append(_text(x(score), axis + 22, f"{name} {score:.0f}", anchor="middle"))
    if scores.must_be is not None:
        parts.append(
            _line(x(scores.must_be), axis - 10, x(scores.must_be), axis + 10, VALIDATION, dash="3 2")
        )
        parts.append(
            _text(x(scores.must_be), axis + 22, f"at least {scores.must_be:.2f}", VALIDATION, anchor="middle")
        )
    if scores.current is not None:
        parts.append(_triangle(x(scores.current), axis + 2, LINES["in use"], up=True))
        parts.append(
            _text(
                x(scores.current), axis + 40, f"in use {scores.current:.2f}", LINES["in use"], anchor="middle"
            )
        )
    parts.append(_triangle(x(scores.candidate), axis - 2, LINES["adapter"], up=False))
    parts.append(
        _text(
            x(scores.candidate),
            axis - 18,
            f"adapter {scores.candidate:.2f}",
            LINES["adapter"],
            anchor="middle",
        )
    )
    return _drawing(VOICE_HEIGHT, parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the loss axis, a little beyond the values."""
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.1
    return low - pad, high + pad


def _apart(labels: Iterable[tuple[float, tuple[str, float]]]) -> list[tuple[float, tuple[str, float]]]:
    """Return labels moved down so far that none lies over the one above it."""
    placed: list[tuple[float, tuple[str, float]]] = []
    for at, label in sorted(labels):
        placed.append((max(at, placed[-1][0] + _LABEL_HEIGHT) if placed else at, label))
    return placed


def _drawing(height: int, parts: Iterable[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">'
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="{PAPER}"/>{"".join(parts)}</svg>'
    )


def _text(
    x: float, y: float, text: str, colour: str = INK, *, anchor: str = "start", bold: bool = False
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'
    )


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str, *, dash: str = "", width: float = 1.2
) -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"{dashes}/>'
    )


def _path(points: Sequence[tuple[float, float]], colour: str) -> str:
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="1.6"/>'


def _dot(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'


def _triangle(x: float, tip: float, colour: str, *, up: bool) -> str:
    """Return a mark whose tip stands at (x, tip)."""
    foot = tip + 10 if up else tip - 10
    return f'<polygon points="{x:.1f},{tip} {x - 6:.1f},{foot} {x + 6:.1f},{foot}" fill="{colour}"/>'
