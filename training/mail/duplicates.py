"""Near-duplicates among a person's own texts: 5-word shingles, Jaccard similarity >= 0.7, exact.

Prefix filter (Bayardo, Ma, Srikant, "Scaling Up All Pairs Similarity Search", WWW 2007): two sets with
Jaccard >= t share an element among the `|x| - ceil(t * |x|) + 1` rarest of either, so only those are indexed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

SHINGLE_WORDS = 5
THRESHOLD = 0.7
# Texts that are compared with one new text. Honest mailboxes need one or two; with more, a duplicate may
# be missed, but the work stays linear in the number of texts whatever they hold.
_MAX_CANDIDATES = 64

_WORD = re.compile(r"\w+")


def find_near_duplicates(texts: Sequence[str], *, threshold: float = THRESHOLD) -> dict[int, int]:
    """Return {position of a near-duplicate: position of the earlier text that it repeats}.

    The earliest of a group stays. Time is linear in the number of shingles plus 64 comparisons a text.
    """
    shingled = [_shingles(text) for text in texts]
    frequency = Counter(shingle for shingles in shingled for shingle in shingles)
    # One global order, rarest first. Only equal frequencies are ordered by chance, and any order will do.
    rank = {shingle: place for place, shingle in enumerate(sorted(frequency, key=frequency.__getitem__))}
    unique = sum(count == 1 for count in frequency.values())
    index: dict[int, list[int]] = {}
    duplicates: dict[int, int] = {}
    for position, shingles in enumerate(shingled):
        if not shingles:
            continue
        size = len(shingles)
        prefix = sorted(map(rank.__getitem__, shingles))[: size - math.ceil(threshold * size) + 1]
        # Ranks below `unique` occur in this text alone: they fill the prefix but point nowhere.
        shared_ranks = [place for place in prefix if place >= unique]
        candidates: Counter[int] = Counter()
        for place in shared_ranks:
            candidates.update(index.get(place, ())[-_MAX_CANDIDATES:])
        for other, _ in candidates.most_common(_MAX_CANDIDATES):
            shared = len(shingles & shingled[other])
            if shared >= threshold * (size + len(shingled[other]) - shared):
                duplicates[position] = other
                break
        else:
            for place in shared_ranks:
                index.setdefault(place, []).append(position)
    return duplicates


def _shingles(text: str) -> frozenset[int]:
    words = _WORD.findall(text.lower())
    if not words:
        return frozenset()
    if len(words) < SHINGLE_WORDS:
        return frozenset((hash(tuple(words)),))
    return frozenset(map(hash, zip(*(words[start:] for start in range(SHINGLE_WORDS)), strict=False)))
