"""What a conversion asks of forms: thin factors, what the linking factor's outputs become."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from curconvert.base.forms import traits_of
from curconvert_runtime.format.forms import FORMS

M, N, R = 7, 5, 3


def test_thin_factors_are_the_product() -> None:
    """Of each form that has them."""
    rng = np.random.default_rng(0)
    found = set()
    for form in FORMS.values():
        tensors: dict[str, Any] = {s: rng.standard_normal(size) for s, size in form.shapes((M, N), R).items()}
        tensors |= {suffix: rng.permutation(size) for suffix, size in form.index_lengths((M, N), R).items()}
        if (thin := traits_of(form.name).thin(tensors)) is not None:
            found.add(form.name)
            assert thin[0].shape == (M, R)
            np.testing.assert_allclose(thin[0] @ thin[1], form.multiply((M, N), tensors), atol=1e-12)
    assert found == {"cur", "interpolative", "two_factor"}


@pytest.mark.parametrize(("form", "linking"), [("cur", "U"), ("interpolative", "T")])
def test_the_linking_factors_outputs_are_outputs_of_the_matrix(form: str, linking: str) -> None:
    """A change of the factor changes the product by what it is multiplied by, or in these rows."""
    rng = np.random.default_rng(0)
    entry, traits = FORMS[form], traits_of(form)
    tensors: dict[str, Any] = {suffix: rng.standard_normal(size) for suffix, size in entry.shapes((M, N), R).items()}
    tensors |= {suffix: rng.permutation(size) for suffix, size in entry.index_lengths((M, N), R).items()}
    assert traits.linking == linking
    outputs = traits.link_outputs(tensors)
    change = rng.standard_normal(tensors[linking].shape)
    before, after = (
        entry.multiply((M, N), tensors | {linking: factor}) for factor in (tensors[linking], tensors[linking] + change)
    )
    expected = np.zeros((M, N))
    if outputs.ndim == 1:
        expected[outputs] = change @ tensors["R"]
    else:
        expected = outputs @ change @ tensors["R"]
    np.testing.assert_allclose(after - before, expected, atol=1e-12)


def test_a_form_that_says_nothing_else_has_the_defaults() -> None:
    """And one that is not there is refused."""
    assert {name for name in FORMS if traits_of(name).corrects_bias} == {
        "cur", "interpolative", "two_factor", "modular_columns",
    }  # fmt: skip
    assert all(traits_of(name).form is form for name, form in FORMS.items())
    with pytest.raises(ValueError, match="'tucker': expected one of cur"):
        traits_of("tucker")
