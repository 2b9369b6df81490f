"""The style profile: 57 countable habits of a writer, and how far two sets of mails are apart in them.

Metric 4 of the gate. D(A, B) = 1/J Σ_j min(2, |mean_j(A) - mean_j(B)| / σ_j) with J = 57: 16 habits of the
surface and 41 function words. σ_j, the spread of feature j from mail to mail, comes from a fixed pool
(configs/style_sigma.yaml, made from the invented personas), so that a distance means the same for everybody.
The clip at 2 keeps one runaway feature from being the whole distance: it was measured at 1.73 without one,
against 0.42 (references/voice.md §2.1).

The function words are English. In other languages they are 0 on both sides: they dilute D, but not the share
of the gap that is closed, which is a ratio of distances.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np
import yaml
from numpy.typing import NDArray

from training.config import CONFIGS
from training.errors import ConfigError
from training.salutation import greeting_class, sign_off_class, strip_identity, total_variation
from training.schemas import Schema
from training.skill import DRAWS, SEED, bootstrap_statistic

SURFACE = (
    "log_words",  # ln(1 + words)
    "word_chars",  # mean characters of a word
    "sentence_words",  # mean words of a sentence
    "log_paragraphs",  # ln(1 + paragraphs)
    "paragraph_sentences",  # sentences per paragraph
    "commas",  # per 100 words, like all that follow unless they say otherwise
    "colons",  # and semicolons
    "exclamation_marks",  # per sentence
    "question_marks",  # per sentence
    "dashes",  # -, – or — between spaces, or "--"
    "ellipses",  # ... or …
    "parentheses",
    "contractions",  # don't, it's, I'll
    "lower_case_starts",  # share of sentences that begin with a small letter
    "capitals",  # words of two letters and more, all in capitals
    "numbers",  # words that hold a digit
)
FUNCTION_WORDS = (
    "the", "a", "an", "and", "but", "or", "so", "if", "because", "of", "to", "in", "on", "at", "for", "with",
    "from", "about", "as", "is", "are", "was", "be", "have", "will", "would", "can", "could", "should", "do",
    "not", "i", "you", "we", "they", "it", "this", "that", "my", "your", "just",
)  # fmt: skip
FEATURES = (*SURFACE, *FUNCTION_WORDS)
CLIP = 2.0
"""Standard deviations from which a feature is as different as can be."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?…]+(?=[\s\"')\]]|$)|\n\s*\n")
_CONTRACTION = re.compile(r"[^\W\d_]+['’](?:t|s|re|ve|ll|d|m)\b", re.I)
_DASH = re.compile(r"(?<=\s)[-–—]{1,2}(?=\s)|--|—")

Profile = NDArray[np.float64]


class StyleMeasure(Schema):
    """Distances to the person's own training mail, and the habits around the text."""

    base: float
    """D of the base's outputs."""
    candidate: float
    """D of the candidate's outputs."""
    current: float | None = None
    """D of the outputs of the adapter in use."""
    own: float
    """D of the person's own held-out mail: nobody comes nearer than this."""
    to_current_lower: float | None = None
    """One-sided 95 % lower bound of D(candidate) - D(current), drawn over prompts; above 0 is worse."""
    length_ratio: float
    """Median words of the candidate's outputs over median words of the training mail."""
    greeting_variation: float
    """Total variation between the greeting classes of outputs and training mail, 0 to 1."""
    sign_off_variation: float
    outputs: int

    @property
    def gap(self) -> float:
        """How much farther from the person the base is than the person is from themselves."""
        return self.base - self.own

    @property
    def gap_closed(self) -> float:
        """W = (D(base) - D(candidate)) / (D(base) - D(own)); 1 is as near as the person's own mail."""
        return (self.base - self.candidate) / self.gap if self.gap > 0 else 0.0


def features_of(text: str) -> Profile:
    """Return the 57 features of one text, shape (57,), in the order of `FEATURES`."""
    words = _WORD.findall(text)
    total = max(len(words), 1)
    sentences = [part for part in (s.strip(" \n\"'(*-–—") for s in _SENTENCE_END.split(text)) if part]
    sentence_count = max(len(sentences), 1)
    paragraphs = max(sum(bool(part.strip()) for part in re.split(r"\n\s*\n", text)), 1)
    letters_first = [part[0] for part in sentences if part[0].isalpha()]
    per_hundred = 100 / total
    surface = (
        math.log1p(len(words)),
        sum(map(len, words)) / total,
        len(words) / sentence_count,
        math.log1p(paragraphs),
        sentence_count / paragraphs,
        text.count(",") * per_hundred,
        (text.count(":") + text.count(";")) * per_hundred,
        text.count("!") / sentence_count,
        text.count("?") / sentence_count,
        len(_DASH.findall(text)) * per_hundred,
        len(re.findall(r"\.{3,}|…", text)) * per_hundred,
        text.count("(") * per_hundred,
        len(_CONTRACTION.findall(text)) * per_hundred,
        sum(letter.islower() for letter in letters_first) / max(len(letters_first), 1),
        sum(len(word) > 1 and word.isalpha() and word.isupper() for word in words) * per_hundred,
        sum(any(map(str.isdigit, word)) for word in words) * per_hundred,
    )
    counts = Counter(word.lower() for word in words)
    return np.array([*surface, *(counts[word] * per_hundred for word in FUNCTION_WORDS)])


def profiles(texts: Sequence[str]) -> Profile:
    """Return the features of each text, shape (texts, 57)."""
    return np.array([features_of(text) for text in texts]).reshape(len(texts), len(FEATURES))


def style_distance(first: Profile, second: Profile, sigma: Profile | None = None) -> float:
    """Return D between two sets of profiles, shapes (n, 57) and (m, 57); 0 alike, 2 as far as can be."""
    sigma = load_sigma() if sigma is None else sigma
    apart = np.abs(first.mean(axis=0) - second.mean(axis=0)) / sigma
    return float(np.minimum(CLIP, apart).mean())


def measure_style(
    *,
    own_train: Sequence[str],
    own_held_out: Sequence[str],
    base_outputs: Sequence[str],
    candidate_outputs: Sequence[str],
    current_outputs: Sequence[str] | None = None,
    names: Collection[str] = (),
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = SEED,
) -> StyleMeasure | None:
    """Measure outputs against the person's own training mail; None when one side has no text.

    Outputs of two arms answer the same prompts in the same order (the comparison with the adapter in use is
    paired). Greeting, sign-off and `names` are removed before the profile and compared on their own.
    """
    if not (own_train and own_held_out and base_outputs and candidate_outputs):
        return None

    def profile(texts: Sequence[str]) -> Profile:
        return profiles([strip_identity(text, names) for text in texts])

    train, candidate = profile(own_train), profile(candidate_outputs)
    current = profile(current_outputs) if current_outputs else None
    lower = None
    if current is not None and len(current) == len(candidate):
        lower, _ = bootstrap_statistic(
            len(candidate),
            lambda drawn: style_distance(candidate[drawn], train) - style_distance(current[drawn], train),
            confidence=confidence,
            draws=draws,
            seed=seed,
        )
    return StyleMeasure(
        base=style_distance(profile(base_outputs), train),
        candidate=style_distance(candidate, train),
        current=None if current is None else style_distance(current, train),
        own=style_distance(profile(own_held_out), train),
        to_current_lower=lower,
        length_ratio=_median_words(candidate_outputs) / max(_median_words(own_train), 1),
        greeting_variation=total_variation(
            [greeting_class(text) for text in candidate_outputs], [greeting_class(text) for text in own_train]
        ),
        sign_off_variation=total_variation(
            [sign_off_class(text) for text in candidate_outputs], [sign_off_class(text) for text in own_train]
        ),
        outputs=len(candidate_outputs),
    )


def sigma_of(texts: Sequence[str], names: Collection[str] = ()) -> dict[str, float]:
    """Return the standard deviation of every feature from text to text, by name: what the table holds."""
    spread = profiles([strip_identity(text, names) for text in texts]).std(axis=0, ddof=1)
    return {name: round(float(value), 4) for name, value in zip(FEATURES, spread, strict=True)}


@cache
def load_sigma(path: Path = CONFIGS / "style_sigma.yaml") -> Profile:
    """Return σ in the order of `FEATURES`, shape (57,). Raises ConfigError with file and feature."""
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as exc:
        raise ConfigError(f"{path.name} is not readable YAML. Restore it from the repository.") from exc
    return parse_sigma(table if isinstance(table, dict) else {}, source=path.name)


def parse_sigma(table: Mapping[str, float], *, source: str = "the table of spreads") -> Profile:
    """Check a table of spreads and put it in order. Raises ConfigError."""
    wrong = sorted(set(table) ^ set(FEATURES))
    if wrong:
        raise ConfigError(f"{source}: {wrong[0]}: one spread is needed for each of {len(FEATURES)} features.")
    for name, value in table.items():
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ConfigError(f"{source}: {name}: a spread must be a number above 0 (value: {value!r:.20}).")
    return np.array([float(table[name]) for name in FEATURES])


def _median_words(texts: Sequence[str]) -> float:
    return float(median(len(text.split()) for text in texts))
