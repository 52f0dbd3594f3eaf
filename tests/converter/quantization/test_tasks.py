"""Factors are quantized one after the other, each by the inputs that reach it through those before it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from curconvert.base import forms
from curconvert.base.forms import traits_of
from curconvert.factorization.measured import deployed
from curconvert.factorization.projection import Projection, with_bias
from curconvert.factorization.types import Factorization
from curconvert.linalg.statistics import InputStatistics
from curconvert.options.quantization import Quantization
from curconvert.quantization.rounding import quantize
from curconvert.quantization.tasks import QuantizationTask
from curconvert_runtime.format.forms import FORMS

M, N, R = 40, 48, 36
FLOAT = torch.float32
RIDGE = 1e-2
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


def factors_of(form: str, rank: int = R) -> Factorization:
    """Draw factors."""
    rng = np.random.default_rng(1)
    shapes = {
        "two_factor": {"A": (M, rank), "B": (rank, N)},
        "interpolative": {"R": (rank, N), "T": (M - rank, rank)},
        "cur": {"C": (M, rank), "U": (rank, rank), "R": (rank, N)},
    }
    tensors = {suffix: deployed(rng.standard_normal(shape), FLOAT) for suffix, shape in shapes[form].items()}
    if form == "interpolative":
        tensors["order"] = torch.from_numpy(rng.permutation(M).astype(np.int32))
    return Factorization(form, (M, N), tensors, rank, 0.0, 0.0)


def run(factors: Factorization, projection: Projection, quantization: Quantization = INT4) -> Factorization:
    """Quantize."""
    return QuantizationTask("layer.weight", factors, projection, quantization, FLOAT, RIDGE).run()["layer.weight"]


def weight() -> torch.Tensor:
    """Draw the original."""
    return torch.from_numpy(np.random.default_rng(2).standard_normal((M, N)))


def wide(tensor: torch.Tensor) -> NDArray[np.float64]:
    """Widen a factor."""
    return tensor.to(torch.float64).numpy()


def changed(
    wanted: NDArray[np.float64], stored: NDArray[np.float64], statistics: InputStatistics
) -> NDArray[np.float64]:
    """Return M for which M·Ẑ is nearest to Z, by least squares in a root of the ridged metric."""
    metric = statistics.gram + RIDGE * np.diag(np.diag(statistics.gram))
    root = np.linalg.cholesky(metric)
    return np.linalg.lstsq((stored @ root).T, (wanted @ root).T, rcond=None)[0].T


def output_error(lost: NDArray[np.float64], statistics: InputStatistics) -> float:
    """Return the norm of the outputs of a difference."""
    return float(np.sqrt(np.trace(lost @ statistics.gram @ lost.T)))


LAST = {"two_factor": ("B", "A"), "interpolative": ("R", "T")}


@pytest.mark.parametrize("form", LAST)
def test_the_second_factor_makes_up_for_the_first(form: str, statistics: InputStatistics) -> None:
    """It is refitted to the first one as it is stored, rounded in the metric that gives, and errors get smaller."""
    (one, two), rank = LAST[form], 20
    factors = factors_of(form, rank)
    found = run(factors, Projection(factors.product(), statistics))
    first = quantize(one, factors.tensors[one], INT4.layout, statistics.gram)
    assert torch.equal(found.tensors[f"{one}.q"], first.parts["q"])
    stored, own = wide(first.rows()), factors.tensors[two]
    gram = stored @ statistics.gram @ stored.T
    best = wide(own) @ changed(wide(factors.tensors[one]), stored, statistics)
    second = quantize(two, torch.from_numpy(best), INT4.layout, gram)
    np.testing.assert_allclose(wide(found.tensors[two]), wide(second.rows()), rtol=1e-6, atol=1e-6)
    blind = quantize(two, own, INT4.layout, gram)

    def error(last: torch.Tensor) -> float:
        kept = {**factors.tensors, one: first.rows(), two: last}
        return output_error(wide(replace(factors, tensors=kept).product() - factors.product()), statistics)

    assert error(found.tensors[two]) < error(blind.rows())


def test_a_small_link_stays_float_and_makes_up_for_both(statistics: InputStatistics) -> None:
    """C and R are rounded as they are; U is then best for them: any other of its size is further from the factors."""
    factors = factors_of("cur", 20)
    found = run(factors, Projection(factors.product(), statistics)).tensors
    assert "U.q" not in found
    before = wide(factors.tensors["U"]) @ wide(found["R"])
    behind = quantize("C", factors.tensors["C"], INT4.layout, before @ statistics.gram @ before.T)
    assert torch.equal(found["C.q"], behind.parts["q"])
    metric = statistics.gram + RIDGE * np.diag(np.diag(statistics.gram))
    root = np.linalg.cholesky(metric)
    best = np.linalg.pinv(wide(found["C"])) @ wide(factors.product()) @ root @ np.linalg.pinv(wide(found["R"]) @ root)
    np.testing.assert_allclose(wide(found["U"]), best, rtol=1e-4, atol=1e-4)
    blind = {**factors.tensors, "C": found["C"], "R": found["R"]}
    errors = [
        output_error(wide(replace(factors, tensors=kept).product() - factors.product()), statistics)
        for kept in ({**blind, "U": found["U"]}, blind)
    ]
    assert errors[0] < 0.9 * errors[1]


def test_past_the_limit_the_link_is_quantized_and_c_makes_up_for_it(
    statistics: InputStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by what those before it give as they are stored."""
    monkeypatch.setattr(forms, "FLOAT_LINK_RANK", 19)
    factors = factors_of("cur", 20)
    found = run(factors, Projection(factors.product(), statistics)).tensors
    link = wide(factors.tensors["U"]) @ changed(wide(factors.tensors["R"]), wide(found["R"]), statistics)
    stored = wide(found["R"])
    rounded = quantize("U", torch.from_numpy(link), INT4.layout, stored @ statistics.gram @ stored.T)
    np.testing.assert_allclose(wide(found["U"]), wide(rounded.rows()), rtol=1e-6, atol=1e-6)
    both = [wide(part["U"]) @ wide(part["R"]) for part in (factors.tensors, found)]
    best = wide(factors.tensors["C"]) @ changed(*both, statistics)
    last = quantize("C", torch.from_numpy(best), INT4.layout, both[1] @ statistics.gram @ both[1].T)
    np.testing.assert_allclose(wide(found["C"]), wide(last.rows()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_factors_to_quantize(form: str) -> None:
    """At a large rank all of its matrices, and each by its own name."""
    chosen = traits_of(form).quantized(10**6)
    assert chosen
    assert len(set(chosen)) == len(chosen)


def test_errors_are_those_of_what_is_stored(statistics: InputStatistics, inputs: NDArray[np.float64]) -> None:
    """Of the product of the dequantized factors, on the inputs themselves."""
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
        assert torch.equal(found.tensors[f"{suffix}.q"], quantize(suffix, tensor, INT4.layout).parts["q"])
