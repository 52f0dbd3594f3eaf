"""Computes the best rank-r approximation weighted by the input's Gram matrix and the output's Fisher matrix.

To second order, a change ΔW of one linear causes the divergence `½ E[(gᵀ ΔW x)²]`. Here x is the layer's input, and g
is the gradient of the log-likelihood of a token sampled from the model, with respect to the layer's output. With
`E[(g gᵀ) ⊗ (x xᵀ)] ≈ F ⊗ H` (K-FAC, Martens & Grosse, arXiv 1503.05671) the divergence is `½ tr(F ΔW H ΔWᵀ)`, or
`½ ‖F^½ ΔW H^½‖_F²`. The best rank-r approximation is then a truncated SVD of `F^½ W H^½` (Eckart–Young).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from curconvert.base.types import Matrix, Vector

DAMPING = 0.1
"""λ of `damped`; needed because gradients come from a sample of a few thousand tokens."""


@dataclass(frozen=True)
class TwoSided:
    """Holds the best approximations of one matrix for all ranks: `Ŵ_r = left[:, :r] · right[:r]`.

    Attributes:
        left: F^-½ P, (m, m), P the left singular vectors of `F^½ W H^½`, leading first.
        right: Pᵀ F^½ W, (m, n).
    """

    left: Matrix
    right: Matrix

    def factors(self, rank: int) -> tuple[Matrix, Matrix]:
        """Return (A, B) with Ŵ = A·B: A (m, r) with orthonormal columns, B (r, n)."""
        basis, triangle = scipy.linalg.qr(self.left[:, :rank], mode="economic", check_finite=False)
        return np.asarray(basis), np.asarray(triangle @ self.right[:rank])

    def costs(self, inputs: NDArray[np.float32], gradients: NDArray[np.float32]) -> Vector:
        """Return `½ mean_t (g_tᵀ (W − Ŵ_r) x_t)²` for each rank r, in nats per token.

        One running sum gives all ranks: `gᵀ(W − Ŵ_r)x = Σ_{i ≥ r} (gᵀ left_i)(right_i x)`. Unlike K-FAC's norm, this
        includes the correlation between the gradients and the inputs of a token.

        Args:
            inputs: x, (tokens, n).
            gradients: g, (tokens, m).

        Returns:
            (m + 1,); the last is 0: the cost of the matrix itself.
        """
        terms = (gradients @ self.left.astype(gradients.dtype)) * (inputs @ self.right.T.astype(inputs.dtype))
        tails = np.cumsum(terms[:, ::-1], axis=1, dtype=np.float64)[:, ::-1]
        return np.append(0.5 * np.mean(tails**2, axis=0), 0.0)


def two_sided(weight: Matrix, gram: Matrix, fisher: Matrix) -> TwoSided:
    """Decompose a matrix in the metric of its inputs and of the loss.

    Args:
        weight: W, (m, n).
        gram: H, (n, n) symmetric positive semi-definite.
        fisher: F, (m, m) symmetric positive definite: see `damped`.
    """
    values, vectors = scipy.linalg.eigh(fisher, driver="evd", check_finite=False)
    scales = np.sqrt(values)
    root, inverse = (vectors * scales) @ vectors.T, (vectors / scales) @ vectors.T
    weighted = root @ weight
    _, basis = scipy.linalg.eigh(weighted @ gram @ weighted.T, driver="evd", check_finite=False)
    basis = basis[:, ::-1]
    return TwoSided(inverse @ basis, basis.T @ weighted)


def damped(fisher: Matrix, damping: float) -> Matrix:
    """Return `F + λ mean(diag F) I`, so that directions without sampled gradients have some weight.

    If F is zero, return the identity: the output does not depend on the layer, and any approximation is as good.
    """
    mean = float(np.mean(np.diag(fisher)))
    return np.asarray(fisher + damping * mean * np.eye(len(fisher))) if mean > 0 else np.eye(len(fisher))
