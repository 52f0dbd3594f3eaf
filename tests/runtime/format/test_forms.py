"""The forms of a stored matrix: their tensors and their products, each spelled out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from curconvert_runtime.format.forms import FORMS, form_of
from curconvert_runtime.format.forms.form import INDICES, PROVENANCE, is_index

M, N, R = 7, 5, 3


COUNTS = {
    "cur": 3 * 12 + 9,
    "interpolative": 3 * 9,
    "two_factor": 3 * 12,
    "modular_rows": 3 * 5,
    "modular_columns": 7 * 3,
    "sparse_rows": 3 * 5,
    "sparse_columns": 7 * 3,
}


@pytest.mark.parametrize(("form", "count"), COUNTS.items())
def test_parameters_are_those_of_the_formula(form: str, count: int) -> None:
    """r(m + n) + r², r(m + n − r), r(m + n), rn and mr; index vectors do not count."""
    assert form_of(form).parameters((M, N), R) == count


@pytest.mark.parametrize("form", FORMS)
def test_the_product_has_the_matrix_shape(form: str) -> None:
    """Tensors of the stated shapes multiply to (m, n), whatever the values."""
    tensors = {suffix: np.ones(shape, np.float16) for suffix, shape in FORMS[form].shapes((M, N), R).items()}
    indices = {suffix: np.arange(size, dtype=np.int32) for suffix, size in FORMS[form].index_lengths((M, N), R).items()}
    product = form_of(form).multiply((M, N), tensors | indices)
    assert product.shape == (M, N)
    assert product.dtype == np.float64


@pytest.mark.parametrize("form", FORMS)
def test_the_product_reads_no_provenance(form: str) -> None:
    """Endings tell: it is the same with other rows and columns, where nothing else says which they are."""
    entry = FORMS[form]
    indices = set(entry.index_lengths((M, N), R))
    assert indices <= set(INDICES)
    if not entry.kept:
        tensors: dict[str, Any] = {s: np.ones(size) for s, size in entry.shapes((M, N), R).items()}
        read = {s: np.arange(entry.index_lengths((M, N), R)[s]) for s in indices if f".{s}" not in PROVENANCE}
        assert entry.multiply((M, N), tensors | read).shape == (M, N)


def test_interpolated_rows_lie_where_the_order_says() -> None:
    """Row i is element order[i] of R's rows followed by those of T·R."""
    rng = np.random.default_rng(0)
    r, t = rng.standard_normal((2, 3)), rng.standard_normal((2, 2))
    rows, order = np.array([3, 1], np.int32), np.array([2, 1, 3, 0], np.int32)
    expected = [t[0, 0] * r[0] + t[0, 1] * r[1], r[1], t[1, 0] * r[0] + t[1, 1] * r[1], r[0]]
    found = form_of("interpolative").multiply((4, 3), {"R": r, "T": t, "rows": rows, "order": order})
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    np.testing.assert_array_equal(found[rows], r)


def test_factors_multiply_in_order() -> None:
    """C·U·R and A·B."""
    rng = np.random.default_rng(0)
    c, u, r = rng.standard_normal((4, 2)), rng.standard_normal((2, 2)), rng.standard_normal((2, 3))
    found = form_of("cur").multiply((4, 3), {"C": c, "U": u, "R": r})
    np.testing.assert_allclose(found, np.einsum("ij,jk,kl", c, u, r), rtol=1e-12)
    found = form_of("two_factor").multiply((4, 3), {"A": c, "B": r})
    np.testing.assert_allclose(found, np.einsum("ij,jl", c, r), rtol=1e-12)


SPREAD = np.array([[1, 0, 0], [0, 0, 1]])


def test_kept_rows_and_columns_lie_where_they_were() -> None:
    """Zeros elsewhere; a bias that is stored beside them is no part of the matrix."""
    weight, kept = np.array([[1, 2], [3, 4]], np.float16), np.array([0, 2], np.int32)
    rows = form_of("modular_rows").multiply((4, 2), {"weight": weight, "rows": kept, "bias": np.ones(2)})
    np.testing.assert_array_equal(rows, [[1, 2], [0, 0], [3, 4], [0, 0]])
    order = np.array([0, 2, 1, 2], np.int32)
    np.testing.assert_array_equal(
        form_of("sparse_rows").multiply((4, 2), {"weight": weight, "rows": kept, "order": order}), rows
    )
    np.testing.assert_array_equal(
        form_of("sparse_columns").multiply((2, 3), {"weight": weight, "order": kept}), weight @ SPREAD
    )
    columns = form_of("modular_columns").multiply((2, 3), {"weight": weight, "cols": kept})
    np.testing.assert_array_equal(columns, [[1, 0, 2], [3, 0, 4]])


@pytest.mark.parametrize(
    ("form", "tall", "wide"),
    [
        ("cur", 5, 5),
        ("two_factor", 5, 5),
        ("interpolative", 5, 4),
        ("modular_rows", 7, 5),
        ("modular_columns", 5, 7),
        ("sparse_rows", 7, 5),
        ("sparse_columns", 5, 7),
    ],
)
def test_the_largest_rank_is_the_forms_own(form: str, tall: int, wide: int) -> None:
    """A modular or sparse form may keep every row, or every column."""
    assert form_of(form).largest_rank((7, 5)) == tall
    assert form_of(form).largest_rank((5, 7)) == wide


def test_an_unknown_form_is_refused() -> None:
    """The message lists those that exist."""
    with pytest.raises(ValueError, match="'tucker': expected one of cur, interpolative, two_factor"):
        form_of("tucker")


@pytest.mark.parametrize(
    ("name", "index"), [("a.q_proj.rows", True), ("a.q_proj.order", True), ("a.cols.weight", False), ("a.R", False)]
)
def test_index_vectors_are_told_by_their_names(name: str, index: bool) -> None:
    """Only the last part of a name counts."""
    assert is_index(name) == index
