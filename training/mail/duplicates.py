"""Near-duplicates among a person's own texts: 5-word shingles, Jaccard similarity >= 0.7, exact.

Prefix filter (Bayardo, Ma, Srikant, "Scaling Up All Pairs Similarity Search", WWW 2007): two sets with
Jaccard >= t share an element among the `|x| - ceil(t * |x|) + 1` rarest of either, so only those are indexed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain

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
    frequency = Counter(chain.from_iterable(shingled))
    shared_by_some = [shingle for shingle, count in frequency.items() if count > 1]
    # One global order, rarest first. Only equal frequencies are ordered by chance, and any order will do.
    rank = {shingle: place for place, shingle in enumerate(sorted(shared_by_some, key=frequency.__getitem__))}
    index: dict[int, list[int]] = {}
    duplicates: dict[int, int] = {}
    for position, shingles in enumerate(shingled):
        size = len(shingles)
        ranks = sorted([rank[shingle] for shingle in shingles & rank.keys()])
        # Shingles of this text alone are the rarest: they fill the prefix but point nowhere.
        prefix = ranks[: max(0, len(ranks) - math.ceil(threshold * size) + 1)]
        if not prefix:
            continue
        found = (index.get(place, ())[-_MAX_CANDIDATES:] for place in prefix)
        for other, _ in Counter(chain.from_iterable(found)).most_common(_MAX_CANDIDATES):
            shared = len(shingles & shingled[other])
            if shared >= threshold * (size + len(shingled[other]) - shared):
                duplicates[position] = other
                break
        else:
            for place in prefix:
                index.setdefault(place, []).append(position)
    return duplicates


def _shingles(text: str) -> frozenset[int]:
    words = _WORD.findall(text.lower())
    if not words:
        return frozenset()
    if len(words) < SHINGLE_WORDS:
        return frozenset((hash(tuple(words)),))
    return frozenset(map(hash, zip(*(words[start:] for start in range(SHINGLE_WORDS)), strict=False)))
