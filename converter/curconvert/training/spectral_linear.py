"""A linear split into components, each with a learned weight."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from torch import Tensor, nn

from curconvert.base.types import Matrix


class SpectralLinear(nn.Module):
    """Computes `y = A ((s ∘ g) ∘ (B x)) + b`, which equals the linear when s and g are 1.

    Attributes:
        A: (out_features, k), orthonormal columns.
        B: (k, in_features), `A·B = W`.
        s: Learned weights of the components, (k,).
        gate: g, (k,): 1, or less for components that are being removed.
        bias: (out_features,) or None.
    """

    A: Tensor
    B: Tensor
    gate: Tensor
    bias: Tensor | None

    def __init__(self, A: Tensor, B: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("A", A)
        self.register_buffer("B", B)
        self.register_buffer("gate", torch.ones(A.shape[1]))
        self.register_buffer("bias", bias)
        self.s = nn.Parameter(torch.ones(A.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        return nn.functional.linear(nn.functional.linear(x, self.B) * (self.s * self.gate), self.A, self.bias)


def components(weight: Matrix, gram: Matrix) -> tuple[Matrix, Matrix]:
    """Split a matrix into orthogonal directions of its outputs, the largest energy first.

    `W H^½ = P Σ Qᵀ` (as in SVD-LLM v2, arXiv 2503.12340) gives A = P and B = Pᵀ W, which needs no inverse root of H.

    Args:
        weight: W, (m, n).
        gram: H, (n, n) symmetric positive semi-definite.

    Returns:
        A, (m, k) with orthonormal columns, and B, (k, n), `A·B = W`, k = min(m, n).
    """
    m, n = weight.shape
    if m <= n:
        _, vectors = scipy.linalg.eigh(weight @ gram @ weight.T, driver="evd", check_finite=False)
        basis = vectors[:, ::-1]
    else:  # reduce to the span of W's columns first: its Gram matrix is smaller
        span, triangle = scipy.linalg.qr(weight, mode="economic", check_finite=False)
        _, vectors = scipy.linalg.eigh(triangle @ gram @ triangle.T, driver="evd", check_finite=False)
        basis = span @ vectors[:, ::-1]
    return np.ascontiguousarray(basis), basis.T @ weight
