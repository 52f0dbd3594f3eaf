"""Products in parts against NumPy's in one go."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curconvert.linalg import chunked
from curconvert.linalg.chunked import ChunkedMatrix


@pytest.mark.parametrize("chunk", [1, 40, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("absolute, scaled", [(False, False), (True, True), (False, True)])
def test_products_are_those_of_the_whole_matrix(
    monkeypatch: pytest.MonkeyPatch, chunk: int, dtype: torch.dtype, absolute: bool, scaled: bool
) -> None:
    """Whatever the size of a part: a row, some rows, everything."""
    monkeypatch.setattr(chunked, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.standard_normal((11, 9))).to(dtype)
    scale = rng.uniform(0.5, 2, 9) if scaled else None
    expected = weight.double().numpy()
    expected = np.abs(expected) if absolute else expected
    expected = expected if scale is None else expected * scale
    matrix = ChunkedMatrix(weight, absolute, scale)
    left, right = rng.standard_normal((3, 11)), rng.standard_normal((9, 4))
    np.testing.assert_array_equal(matrix.dense(), expected)
    np.testing.assert_allclose(matrix.times(right), expected @ right, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(matrix.left_times(left), left @ expected, rtol=1e-13, atol=1e-13)
    assert matrix.shape == (11, 9)
    parts = [part for part, _ in matrix.chunks()]
    assert [0, *(part.stop for part in parts)] == [*(part.start for part in parts), 11]
    assert max(part.stop - part.start for part in parts) <= max(1, chunk // 9)
