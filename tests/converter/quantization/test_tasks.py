"""Factors are quantised one after the other, each by the inputs that reach it through those before it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from curconvert.calibration.statistics import InputStatistics
from curconvert.factorization.gram import deployed
from curconvert.factorization.projection import Projection, with_bias
from curconvert.factorization.types import Factorization, Form
from curconvert.quantization import tasks
from curconvert.quantization.options import Quantization
from curconvert.quantization.rounding import quantise
from curconvert.quantization.tasks import QuantisationTask, quantised_factors
from curconvert_runtime.forms import FORMS

M, N, R = 40, 48, 36
FLOAT = torch.float32
INT4 = Quantization("int4", 32)


@pytest.fixture(scope="module")
def inputs() -> NDArray[np.float64]:
    """Correlated, with a mean."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((300, 12)) @ rng.standard_normal((12, N)) + 0.3 * rng.standard_normal((300, N)) + 0.5


@pytest.fixture(scope="module")
def statistics(inputs: NDArray[np.float64]) -> InputStatistics:
    """Of these inputs."""
    return InputStatistics(inputs.T @ inputs / len(inputs), len(inputs), inputs.mean(axis=0))


def factors_of(form: Form, rank: int = R) -> Factorization:
    """Draw factors."""
    rng = np.random.default_rng(1)
    shapes = {
        "two_factor": {"A": (M, rank), "B": (rank, N)},
        "cur": {"C": (M, rank), "U": (rank, rank), "R": (rank, N)},
    }
    tensors = {suffix: deployed(rng.standard_normal(shape), FLOAT) for suffix, shape in shapes[form].items()}
    return Factorization(form, (M, N), tensors, rank, 0.0, 0.0)


def run(factors: Factorization, projection: Projection, quantization: Quantization = INT4) -> Factorization:
    """Quantise."""
    return QuantisationTask("layer.weight", factors, projection, quantization, FLOAT).run()["layer.weight"]


def weight() -> torch.Tensor:
    """Draw the original."""
    return torch.from_numpy(np.random.default_rng(2).standard_normal((M, N)))


def test_the_second_factor_meets_what_the_first_gives(statistics: InputStatistics) -> None:
    """A is rounded in the metric B̂ H B̂ᵀ, B̂ as it is stored; B in that of H."""
    factors = factors_of("two_factor")
    found = run(factors, Projection(weight(), statistics))
    first = quantise("B", factors.tensors["B"], INT4.layout, statistics.gram)
    assert torch.equal(found.tensors["B.q"], first.parts["q"])
    stored = first.rows().to(torch.float64).numpy()
    second = quantise("A", factors.tensors["A"], INT4.layout, stored @ statistics.gram @ stored.T)
    assert torch.equal(found.tensors["A.q"], second.parts["q"])
    assert torch.equal(found.tensors["A"], second.rows())


def test_a_small_link_stays_float(statistics: InputStatistics, monkeypatch: pytest.MonkeyPatch) -> None:
    """U of C·U·R is as it was, and C is rounded behind it; past the limit it is quantised, too."""
    factors = factors_of("cur")
    found = run(factors, Projection(weight(), statistics))
    assert torch.equal(found.tensors["U"], factors.tensors["U"])
    assert {"C.q", "R.q"} <= found.tensors.keys()
    assert "U.q" not in found.tensors
    link = found.tensors["U"].double().numpy() @ found.tensors["R"].double().numpy()
    behind = quantise("C", factors.tensors["C"], INT4.layout, link @ statistics.gram @ link.T)
    assert torch.equal(found.tensors["C.q"], behind.parts["q"])
    monkeypatch.setattr(tasks, "FLOAT_LINK_RANK", R - 1)
    assert "U.q" in run(factors, Projection(weight(), statistics)).tensors


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_factors_to_quantise(form: str) -> None:
    """At a large rank all of its matrices, and each by its own name."""
    chosen = quantised_factors(form, 10**6)
    assert chosen
    assert len(set(chosen)) == len(chosen)


def test_errors_are_those_of_what_is_stored(statistics: InputStatistics, inputs: NDArray[np.float64]) -> None:
    """Of the product of the dequantised factors, on the inputs themselves."""
    original = weight()
    found = run(factors_of("two_factor"), Projection(original, statistics))
    product = found.tensors["A"].double().numpy() @ found.tensors["B"].double().numpy()
    lost = original.numpy() - product
    assert found.relative_frobenius_error == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(original), rel=1e-9)
    outputs = np.linalg.norm(inputs @ lost.T) / np.linalg.norm(inputs @ original.numpy().T)
    assert found.relative_output_error == pytest.approx(outputs, rel=1e-6)


def test_a_corrected_bias_makes_up_for_rounding(statistics: InputStatistics, inputs: NDArray[np.float64]) -> None:
    """The mean output is the original's."""
    original, bias = weight(), torch.arange(M, dtype=torch.float64)
    projection = Projection(original, statistics, bias)
    found = run(with_bias(factors_of("two_factor"), projection, FLOAT), projection)
    product = found.tensors["A"].double() @ found.tensors["B"].double()
    mean = torch.from_numpy(inputs.mean(axis=0))
    ours = product @ mean + found.tensors["bias"].double()
    np.testing.assert_allclose(ours.numpy(), (original @ mean + bias).numpy(), atol=1e-4)


def test_rounding_to_the_nearest_looks_at_no_inputs(statistics: InputStatistics) -> None:
    """Each factor by itself."""
    factors = factors_of("two_factor")
    found = run(factors, Projection(weight(), statistics), Quantization("int4", 32, rounding="nearest"))
    for suffix, tensor in factors.tensors.items():
        assert torch.equal(found.tensors[f"{suffix}.q"], quantise(suffix, tensor, INT4.layout).parts["q"])
