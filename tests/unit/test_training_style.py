"""The style profile: 57 named habits, distances that can be computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.errors import ConfigError
from training.style import (
    CLIP,
    FEATURES,
    FUNCTION_WORDS,
    SURFACE,
    StyleMeasure,
    features_of,
    load_sigma,
    measure_style,
    parse_sigma,
    profiles,
    sigma_of,
    style_distance,
)

TERSE = ["ok. will do.", "no. too late.", "fine. done at 9.", "ok. send it."]
FLORID = [
    "How wonderful it was, my dears, to see you all among the roses; I could have wept, and I did!",
    "Oh, what a joy (and what a surprise!) your letter was; the garden is yours, as ever, on Sunday!",
]


def feature(text: str, name: str) -> float:
    return float(features_of(text)[FEATURES.index(name)])


def test_there_are_57_features_and_each_has_a_name() -> None:
    assert (len(SURFACE), len(FUNCTION_WORDS), len(set(FEATURES))) == (16, 41, 57)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("one two three", "log_words", math.log(4)),
        ("one three", "word_chars", 4.0),
        ("One two three. Four five!", "sentence_words", 2.5),
        ("One.\n\nTwo.\n\nThree.", "log_paragraphs", math.log(4)),
        ("One. Two.\n\nThree. Four.", "paragraph_sentences", 2.0),
        ("one, two, three four", "commas", 50.0),
        ("one: two; three four", "colons", 50.0),
        ("One! Two. Three! Four.", "exclamation_marks", 0.5),
        ("One? Two.", "question_marks", 0.5),
        ("one - two — three--four", "dashes", 75.0),
        ("one... two… three four", "ellipses", 50.0),
        ("one (two) three four", "parentheses", 25.0),
        ("I don't know it's here", "contractions", 40.0),
        ("one two. Three four.", "lower_case_starts", 0.5),
        ("I saw the ADAPTER go", "capitals", 20.0),
        ("at 9 on the 3rd of May", "numbers", 200 / 7),
        ("the boat and the tide", "the", 40.0),
        ("the boat and the tide", "and", 20.0),
    ],
)
def test_a_feature_counts_what_its_name_says(text: str, name: str, expected: float) -> None:
    assert feature(text, name) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", " \n\n ", "...", "—", "?!"])
def test_a_text_without_words_has_finite_features(text: str) -> None:
    assert np.isfinite(features_of(text)).all()


def test_the_distance_is_the_mean_of_the_standardised_differences() -> None:
    sigma = np.full(57, 0.5)
    near = np.zeros((3, 57))
    far = np.zeros((2, 57))
    far[:, 0] = 0.25  # half a standard deviation in one of 57 features
    assert style_distance(near, far, sigma) == pytest.approx(0.5 / 57)


def test_one_runaway_feature_is_not_the_whole_distance() -> None:
    far = np.zeros((1, 57))
    far[0, 3] = 1e6
    assert style_distance(np.zeros((1, 57)), far, np.ones(57)) == pytest.approx(CLIP / 57)


def test_alike_is_nought_and_the_distance_is_symmetric() -> None:
    terse, florid = profiles(TERSE), profiles(FLORID)
    assert style_distance(terse, terse) == 0
    assert style_distance(terse, florid) == style_distance(florid, terse) > 0.3


def test_greeting_and_names_are_no_style() -> None:
    framed = [f"Hi Anna,\n\n{text}\n\nBest,\nTom" for text in TERSE]
    found = measure_style(
        own_train=TERSE,
        own_held_out=framed,
        base_outputs=FLORID,
        candidate_outputs=framed,
        names=["anna", "tom"],
    )
    assert found is not None
    assert (found.own, found.candidate) == (0, 0)
    assert (found.greeting_variation, found.sign_off_variation) == (1, 1)  # told on its own


def test_the_gap_closed_is_the_share_of_the_way_from_the_base_to_the_person() -> None:
    measure = StyleMeasure(
        base=0.6,
        candidate=0.4,
        own=0.2,
        length_ratio=1,
        greeting_variation=0,
        sign_off_variation=0,
        outputs=24,
    )
    assert measure.gap_closed == pytest.approx(0.5)
    beyond = measure.model_copy(update={"base": 0.1})
    assert beyond.gap < 0 and beyond.gap_closed == 0


def test_the_length_is_compared_by_medians() -> None:
    found = measure_style(
        own_train=["a b c d", "a b c d e f", "a b c d e"],  # median 5
        own_held_out=["a b"],
        base_outputs=["a"],
        candidate_outputs=["a b c d e f g h i j", "a b", "a " * 500],  # median 10
    )
    assert found is not None and found.length_ratio == 2


def test_a_candidate_that_lost_the_style_is_surely_farther_than_the_adapter_in_use() -> None:
    found = measure_style(
        own_train=TERSE, own_held_out=TERSE, base_outputs=FLORID * 2, candidate_outputs=FLORID * 2,
        current_outputs=TERSE,
    )  # fmt: skip
    assert found is not None and found.current is not None and found.to_current_lower is not None
    assert found.candidate > found.current and found.to_current_lower > 0


def test_an_equal_candidate_is_not_surely_farther() -> None:
    found = measure_style(
        own_train=TERSE, own_held_out=TERSE, base_outputs=FLORID * 2, candidate_outputs=TERSE,
        current_outputs=TERSE,
    )  # fmt: skip
    assert found is not None and found.to_current_lower == 0


def test_without_outputs_there_is_no_measure() -> None:
    assert (
        measure_style(own_train=TERSE, own_held_out=TERSE, base_outputs=[], candidate_outputs=TERSE) is None
    )


def test_the_shipped_spreads_are_one_positive_number_a_feature() -> None:
    assert load_sigma().shape == (57,)
    assert (load_sigma() > 0).all()


def test_a_wrong_table_is_refused_by_the_name_of_the_feature() -> None:
    table = sigma_of([*TERSE, *FLORID])
    with pytest.raises(ConfigError, match="commas"):
        parse_sigma({name: value for name, value in table.items() if name != "commas"})
    with pytest.raises(ConfigError, match="above 0"):
        parse_sigma({**dict.fromkeys(FEATURES, 1.0), "the": 0.0})
