"""Padding and positions, written out."""

from __future__ import annotations

import numpy as np
import pytest

from curconvert_runtime.serve.requests import default_positions, integers, padded

ROWS = [np.array([7, 8, 9]), np.array([5])]


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("left", [[7, 8, 9], [0, 0, 5]], [[1, 1, 1], [0, 0, 1]]),
        ("right", [[7, 8, 9], [5, 0, 0]], [[1, 1, 1], [1, 0, 0]]),
    ],
)
def test_rows_are_padded_on_the_side_asked_for(side: str, ids: list[list[int]], mask: list[list[int]]) -> None:
    """Ids and mask line up."""
    found = padded(ROWS, side)
    assert (found[0].tolist(), found[1].tolist()) == (ids, mask)


@pytest.mark.parametrize(
    ("side", "mask", "new", "positions"),
    [
        ("left", [[1, 1, 1], [0, 0, 1]], 3, [[0, 1, 2], [0, 0, 0]]),
        ("left", [[1, 1, 1, 1], [0, 0, 1, 1]], 1, [[3], [1]]),
        ("right", [[1, 1, 1], [1, 0, 0]], 3, [[0, 1, 2], [0, 0, 0]]),
        ("right", [[1, 1, 1, 1], [1, 1, 0, 0]], 1, [[3], [1]]),
        ("right", [[1, 1, 1, 1]], 2, [[2, 3]]),
    ],
)
def test_each_row_counts_its_own_tokens(side: str, mask: list[list[int]], new: int, positions: list[list[int]]) -> None:
    """Positions do not depend on the padding, in prefill and in decoding."""
    assert default_positions(np.array(mask), new, side).tolist() == positions


def test_integers_keep_their_shape_and_become_contiguous() -> None:
    """A transposed view comes out as C-ordered int64; a scalar stays one."""
    view = np.arange(6, dtype=np.int16).reshape(2, 3).T
    result = integers(view, "x")
    assert result.dtype == np.int64
    assert result.flags.c_contiguous
    assert result.tolist() == view.tolist()
    assert integers(3, "x").shape == ()
