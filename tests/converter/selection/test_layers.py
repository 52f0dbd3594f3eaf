"""Which layers: every form of --layers."""

from __future__ import annotations

import numpy as np
import pytest

from curconvert.base.errors import InputError
from curconvert.selection.layers import layer_count, score_of, select_layers
from curconvert.selection.scores import SCORES


@pytest.mark.parametrize("score", SCORES)
def test_the_lowest_scores_are_taken_but_never_the_ends(score: str) -> None:
    """The first and the last layer are no candidates, however low their score."""
    scores = np.array([0.0, 0.5, 0.1, 0.4, 0.2, 0.0])
    assert score_of(score) == score_of(f"{score}:2") == score
    assert select_layers(f"{score}:2", 6, scores) == (2, 4)
    assert select_layers(f"{score}:4", 6, scores) == (1, 2, 3, 4)
    assert select_layers(score, 6, scores) == (2, 4)


@pytest.mark.parametrize("spec", ["all", "3", "1-2"])
def test_other_choices_need_no_score(spec: str) -> None:
    """Nothing is measured for them."""
    assert score_of(spec) is None


@pytest.mark.parametrize("layers, count", [(32, 10), (30, 9), (3, 1), (2, 0), (1, 0)])
def test_the_default_share_is_the_papers(layers: int, count: int) -> None:
    """Ten of 32 layers, as many as there are candidates in a small model."""
    assert [layer_count(score, layers) for score in SCORES] == [count] * len(SCORES)


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("all", (0, 1, 2, 3, 4, 5)),
        ("0", (0,)),
        ("5,1", (1, 5)),
        ("1-3", (1, 2, 3)),
        ("1-3,2, 5", (1, 2, 3, 5)),
        ("2-2", (2,)),
    ],
)
def test_explicit_layers(spec: str, expected: tuple[int, ...]) -> None:
    """Numbers and ranges, in any order, with repetition."""
    assert select_layers(spec, 6) == expected
    assert layer_count(spec, 6) == len(expected)


@pytest.mark.parametrize(
    "spec",
    ["", ",", "1,", "x", "-1", "1-", "3-1", "6", "0-6", "1.5", "angular:", "angular:0", "angular:5", "angular:-1",
     "angular:x", "angular:1:2", "angularx",
     "influence:", "influence:0", "rank:5", "rank:x", "ranks", "ALL", "all,1", "1--2", "9" * 5000,
     "angular:" + "9" * 5000],
)  # fmt: skip
def test_malformed_or_empty_choices_are_refused(spec: str) -> None:
    """The message quotes the option."""
    with pytest.raises(InputError, match="--layers"):
        layer_count(spec, 6)
