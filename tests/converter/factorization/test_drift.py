"""Targets between the student's and the teacher's outputs, against least squares on the tokens themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from curconvert.base.plan import MatrixPlan
from curconvert.factorization.drift import correction, drift_corrected, held_out_share
from curconvert.factorization.projection import Projection
from curconvert.factorization.types import Factorization
from curconvert.linalg.statistics import Drift, InputStatistics
from curconvert.methods.core.options import ConvertOptions
from support.matrices import Stored, random_weight, statistics_of, tasks_of

Matrix = NDArray[np.float64]
M, N, RANK = 24, 18, 6
FORMS = {"cur": "cur", "row-id": "interpolative", "pifa": "interpolative", "svd-llm": "two_factor"}


def streams(seed: int, count: int, drift: float = 0.3, noise: float = 0.3, mean: float = 0.0) -> tuple[Matrix, Matrix]:
    """Inputs of the original and, partly a function of them and partly noise, those of the compressed model."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((2, N, N)) / np.sqrt(N)
    x = rng.standard_normal((count, N)) @ (np.eye(N) + mixing[0]) + mean
    return x, x + drift * (x @ mixing[1]) + noise * rng.standard_normal(x.shape)


def compared(x: Matrix, x_hat: Matrix, held_out: InputStatistics | None = None) -> InputStatistics:
    """Moments of both, by their definitions."""
    whole, difference = statistics_of(x_hat), x - x_hat
    drift = Drift(difference.T @ x_hat / len(x), difference.mean(axis=0))
    return InputStatistics(whole.gram, whole.tokens, whole.mean, held_out, drift=drift)


def split(x: Matrix, x_hat: Matrix, count: int) -> InputStatistics:
    """Moments of all tokens, the last `count` held out."""
    return compared(x, x_hat, compared(x[-count:], x_hat[-count:]))


def regression(weight: Matrix, x: Matrix, x_hat: Matrix, ridge: float = 0.0) -> Matrix:
    """The D that minimizes `‖W x − (W + D) x̂‖² + λ ‖D diag(H)^½‖²` over tokens, by augmented least squares."""
    lost = (x - x_hat) @ weight.T / np.sqrt(len(x))
    pull = np.diag(np.sqrt(ridge * (x_hat**2).mean(axis=0)))
    system = np.vstack([x_hat / np.sqrt(len(x)), pull])
    return np.asarray(np.linalg.lstsq(system, np.vstack([lost, np.zeros((N, len(weight)))]), rcond=None)[0].T)


def factorize(method: str, weight: torch.Tensor, bias: torch.Tensor | None, inputs: InputStatistics) -> Factorization:
    """Factorize as a conversion does."""
    stored: Any = Stored({"x.weight": weight} if bias is None else {"x.weight": weight, "x.bias": bias})
    plan = MatrixPlan("x.weight", (M, N), FORMS.get(method, "cur"), RANK)  # type: ignore[arg-type]
    options = ConvertOptions.for_method(method, rank=RANK, ridge=1e-3, sequential=True)
    (task,) = tasks_of(options, [plan], {"x.weight": inputs}, stored, torch.float64)
    return task.run()["x.weight"]


@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_the_correction_is_the_regression_of_what_is_lost(ridge: float) -> None:
    """W E[x x̂ᵀ] H⁻¹ − W without a ridge, and pulled towards zero with one."""
    x, x_hat = streams(0, 300)
    W = random_weight(0).numpy()
    found = correction(W, compared(x, x_hat), ridge)
    np.testing.assert_allclose(found, regression(W, x, x_hat, ridge), atol=1e-8)
    if not ridge:
        cross, gram = x.T @ x_hat, x_hat.T @ x_hat
        np.testing.assert_allclose(W + found, W @ cross @ np.linalg.inv(gram), atol=1e-8)


def test_features_that_are_always_zero_are_given_no_weight() -> None:
    """And nothing is not finite, with more features than tokens neither."""
    x, x_hat = streams(1, 12)
    x_hat[:, 3] = 0
    found = correction(random_weight(1).numpy(), compared(x, x_hat), 0.01)
    assert np.isfinite(found).all()
    assert not found[:, 3].any()


@pytest.mark.parametrize(("count", "noise", "low", "high"), [(2000, 0.0, 0.99, 1.0), (60, 1.5, 0.05, 0.95)])
def test_the_share_is_the_best_on_held_out_tokens(count: int, noise: float, low: float, high: float) -> None:
    """Against every hundredth from 0 to 1, each measured on the held-out tokens with D from the other ones."""
    x, x_hat = streams(2, count, noise=noise)
    W, unseen = random_weight(2).numpy(), count // 3
    share = held_out_share(Projection(torch.from_numpy(W), split(x, x_hat, unseen)), 0.01)
    D = regression(W, x[:-unseen], x_hat[:-unseen], 0.01)

    def error(alpha: float) -> float:
        return float(np.linalg.norm(x[-unseen:] @ W.T - x_hat[-unseen:] @ (W + alpha * D).T) ** 2)

    assert share is not None
    assert low <= share <= high
    errors = [error(alpha) for alpha in np.linspace(0, 1, 101)]
    assert error(share) <= min(errors)
    assert abs(share - int(np.argmin(errors)) / 100) <= 0.0051


def test_a_correction_that_does_not_carry_over_gets_no_share() -> None:
    """The held-out tokens have drifted the other way."""
    x, x_hat = streams(3, 400, drift=0.5, noise=0.0)
    x_hat[-100:] = 2 * x[-100:] - x_hat[-100:]
    assert held_out_share(Projection(random_weight(3), split(x, x_hat, 100)), 0.01) == 0.0


def test_without_a_drift_or_a_held_out_part_the_target_is_the_weight() -> None:
    """The same tensor; what was not measured is None, what was and is not trusted is 0."""
    x, x_hat = streams(4, 100)
    weight = random_weight(4)
    cases = ((statistics_of(x), None), (compared(x, x_hat), 0.0), (split(x, x, 30), 0.0))
    for statistics, expected in cases:
        projection, target = drift_corrected(Projection(weight, statistics), 0.01)
        assert target is weight
        assert projection.teacher_share == expected


def test_the_target_is_fitted_to_all_tokens() -> None:
    """Once the share is chosen."""
    x, x_hat = streams(5, 90)
    weight = random_weight(5)
    projection, target = drift_corrected(Projection(weight, split(x, x_hat, 30)), 0.01)
    assert projection.teacher_share
    expected = weight.numpy() + projection.teacher_share * regression(weight.numpy(), x, x_hat, 0.01)
    np.testing.assert_allclose(target.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("method", FORMS)
def test_factors_are_best_for_the_target(method: str) -> None:
    """Of any rank for pifa and svd-llm, and for the chosen rows and columns of W itself for cur and row-id."""
    x, x_hat = streams(6, 300)
    weight = random_weight(6)
    statistics = split(x, x_hat, 60)
    found = factorize(method, weight, None, statistics)
    W, target = weight.numpy(), drift_corrected(Projection(weight, statistics), 1e-3)[1].numpy()
    metric = np.linalg.cholesky(statistics.gram + 1e-3 * np.diag(np.diag(statistics.gram)))
    wanted = target @ metric
    if method in ("pifa", "svd-llm"):
        best = np.linalg.norm(np.linalg.svd(wanted, compute_uv=False)[RANK:])
    else:
        rows = W[found.tensors["rows"].numpy()]
        np.testing.assert_array_equal(found.tensors["R"].numpy(), rows)
        right = np.linalg.qr((rows @ metric).T)[0]
        left = np.eye(M)
        if method == "cur":
            C = W[:, found.tensors["cols"].numpy()]
            np.testing.assert_array_equal(found.tensors["C"].numpy(), C)
            basis = np.linalg.qr(C)[0]
            left = basis @ basis.T
        else:  # the chosen rows are kept as they are, whatever the target says of them
            left[found.tensors["rows"].numpy()] = 0
        expected = left @ wanted @ right @ right.T
        product = found.product().numpy() @ metric
        if method == "row-id":
            expected[found.tensors["rows"].numpy()] = rows @ metric
        np.testing.assert_allclose(product, expected, atol=1e-8)
        return
    assert np.linalg.norm(wanted - found.product().numpy() @ metric) == pytest.approx(best, rel=1e-9)
    assert found.teacher_share
    assert np.linalg.norm(W @ metric - found.product().numpy() @ metric) > 1.01 * best


@pytest.mark.parametrize("method", FORMS)
def test_share_zero_is_the_students_target(method: str) -> None:
    """Bit for bit what the same inputs give without the original's."""
    x, x_hat = streams(7, 200)
    weight = random_weight(7)
    found, plain = (factorize(method, weight, None, s) for s in (compared(x, x_hat), statistics_of(x_hat)))
    assert (found.teacher_share, plain.teacher_share) == (0.0, None)
    assert all(torch.equal(found.tensors[suffix], plain.tensors[suffix]) for suffix in plain.tensors)
    assert found.relative_output_error == plain.relative_output_error


@pytest.mark.parametrize("method", FORMS)
def test_a_bias_makes_up_for_the_means_drift_too(method: str) -> None:
    """b' is what makes the mean output that of the mixed target; the error on x̂ is reported as it is."""
    x, x_hat = streams(8, 400, mean=5.0)
    weight, bias = random_weight(8), random_weight(9, M, 1)[:, 0]
    found = factorize(method, weight, bias, split(x, x_hat, 100))
    W, share = weight.numpy(), found.teacher_share
    assert share
    mixed = share * x.mean(axis=0) + (1 - share) * x_hat.mean(axis=0)
    expected = bias.numpy() + W @ mixed - found.product().numpy() @ x_hat.mean(axis=0)
    np.testing.assert_allclose(found.tensors["bias"].numpy(), expected, atol=1e-9)
    outputs = x_hat @ W.T
    difference = outputs + bias.numpy() - x_hat @ found.product().numpy().T - found.tensors["bias"].numpy()
    error = np.linalg.norm(difference) / np.linalg.norm(outputs)
    assert found.relative_output_error == pytest.approx(error, rel=1e-9)


def test_before_a_bias_the_share_is_chosen_on_centered_tokens() -> None:
    """The bias carries the means, so how far they have moved does not count."""
    x, x_hat = streams(10, 120, noise=1.0)
    weight, bias = random_weight(10), torch.zeros(M, dtype=torch.float64)
    shares = []
    for shift in (0.0, 50.0):
        moved = x_hat + shift
        parts = [part - part.mean(axis=0) for part in (x[:-40], moved[:-40], x[-40:], moved[-40:])]
        W = weight.numpy()
        D = regression(W, parts[0], parts[1], 0.01)
        lost, gained = (parts[2] - parts[3]) @ W.T, parts[3] @ D.T
        expected = np.clip(np.vdot(lost, gained) / np.vdot(gained, gained), 0, 1)
        found = held_out_share(Projection(weight, split(x, moved, 40), bias), 0.01)
        assert found == pytest.approx(expected, rel=1e-6)
        shares.append(found)
    assert shares[0] == pytest.approx(shares[1], rel=1e-6)
    assert 0.05 < shares[0] < 0.95
