"""The authorship judge: how probable it is that this person wrote a text, calibrated to this person.

Metric 3 of the gate. Character 2-4-grams (TF-IDF) and a balanced logistic regression, fitted anew for every
run and thrown away after it: a judge is personal data, and one that was reused would become something to
train against. Greeting, sign-off and names are removed first, else it is a signature detector. The base's own
outputs are among the negatives: a judge that knows only other people called the untuned base "Marcus" with
0.55 of a possible 0.67 (references/voice.md §2.1).

V = (mean P(own) of the candidate's outputs - F) / (C - F), with the floor F from the base's outputs for the
held-out prompts and the ceiling C from the person's held-out mail.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.salutation import strip_identity
from training.schemas import Schema
from training.skill import DRAWS, SEED, bootstrap_statistic

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

BASE_OUTPUT_WEIGHT = 4.0
"""Weight of one base output among the negatives, next to 1 for a mail of the panel: a dozen outputs must
count beside some two hundred mails (measured with 12 outputs, references/voice.md §2.1)."""


class VoiceMeasure(Schema):
    """The calibrated voice score and what it is made of; P(own) are means over texts, 0 to 1."""

    own_mails: int
    """Training mails that the judge was fitted on."""
    floor: float
    """F: P(own) of the base's outputs for the held-out prompts."""
    ceiling: float
    """C: P(own) of the person's held-out mail."""
    candidate: float
    current: float | None = None
    to_current_upper: float | None = None
    """One-sided 95 % upper bound of V(candidate) - V(current), drawn over prompts; below 0 is worse."""
    outputs: int

    @property
    def room(self) -> float:
        """C - F: what there is to tell apart."""
        return self.ceiling - self.floor

    @property
    def value(self) -> float:
        """V of the candidate: 0 writes like the base, 1 like the person. 0 when there is no room."""
        return (self.candidate - self.floor) / self.room if self.room > 0 else 0.0

    @property
    def current_value(self) -> float | None:
        """V of the adapter in use."""
        if self.current is None:
            return None
        return (self.current - self.floor) / self.room if self.room > 0 else 0.0


@dataclass(frozen=True)
class AuthorshipJudge:
    """A fitted judge of one person's writing; hold it in memory only."""

    pipeline: Pipeline
    names: frozenset[str]

    def score(self, texts: Sequence[str]) -> list[float]:
        """Return P(own) of each text, 0 to 1. A text of which nothing is left scores 0: it says nothing."""
        stripped = [strip_identity(text, self.names) for text in texts]
        if not any(stripped):
            return [0.0] * len(stripped)
        chances = self.pipeline.predict_proba(stripped)[:, 1]
        return [float(chance) if text else 0.0 for text, chance in zip(stripped, chances, strict=True)]


def fit_judge(
    own: Sequence[str],
    others: Sequence[str],
    base_outputs: Sequence[str],
    *,
    names: Collection[str] = (),
) -> AuthorshipJudge:
    """Fit a judge: positives `own` (training mail), negatives `others` (panel mail) and `base_outputs`.

    Both classes weigh the same in all. Deterministic: lbfgs from zero, no shuffling.

    Raises ValueError when a class has no text left.
    """
    # scikit-learn takes a second to import; commands that judge nothing do not pay for it.
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    known = frozenset(names)
    rows = [
        (strip_identity(text, known), label, weight)
        for texts, label, weight in ((own, 1, 1.0), (others, 0, 1.0), (base_outputs, 0, BASE_OUTPUT_WEIGHT))
        for text in texts
    ]
    rows = [row for row in rows if row[0]]
    texts, labels = [row[0] for row in rows], np.array([row[1] for row in rows])
    weights = np.array([row[2] for row in rows])
    if len(set(labels)) < 2:
        raise ValueError("A judge needs texts of the person and texts of others; one of them has none.")
    for label in (0, 1):
        weights[labels == label] *= len(weights) / (2 * weights[labels == label].sum())
    pipeline = make_pipeline(
        # Capitals are voice: "i think" and "I think" differ.
        TfidfVectorizer(analyzer="char", ngram_range=(2, 4), lowercase=False, sublinear_tf=True, min_df=2),
        LogisticRegression(C=1.0, max_iter=1_000),
    )
    pipeline.fit(texts, labels, logisticregression__sample_weight=weights)
    return AuthorshipJudge(pipeline, known)


def measure_voice(
    judge: AuthorshipJudge,
    *,
    own_mails: int,
    own_held_out: Sequence[str],
    base_outputs: Sequence[str],
    candidate_outputs: Sequence[str],
    current_outputs: Sequence[str] | None = None,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = SEED,
) -> VoiceMeasure | None:
    """Score the candidate between floor and ceiling; None when one side has no text.

    `base_outputs` answer held-out prompts, not the ones that the judge was fitted on. Outputs of two arms
    answer the same prompts in the same order (the comparison with the adapter in use is paired).
    """
    if not (own_held_out and base_outputs and candidate_outputs):
        return None
    floor, ceiling = _mean(judge.score(base_outputs)), _mean(judge.score(own_held_out))
    candidate = np.array(judge.score(candidate_outputs))
    current = np.array(judge.score(current_outputs)) if current_outputs else None
    upper = None
    if current is not None and len(current) == len(candidate) and ceiling > floor:
        apart = (candidate - current) / (ceiling - floor)
        _, upper = bootstrap_statistic(
            len(apart),
            lambda drawn: float(apart[drawn].mean()),
            confidence=confidence,
            draws=draws,
            seed=seed,
        )
    return VoiceMeasure(
        own_mails=own_mails,
        floor=floor,
        ceiling=ceiling,
        candidate=float(candidate.mean()),
        current=None if current is None else float(current.mean()),
        to_current_upper=upper,
        outputs=len(candidate),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
