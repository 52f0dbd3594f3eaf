"""Defines the torch linear of form `two_factor`."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from curconvert.blocks.linears.factored import FactoredLinear
from curconvert_runtime.format.forms import two_factor


class TwoFactorLinear(FactoredLinear):
    """`y = A (B x) + b`.

    Attributes:
        A: (out_features, rank).
        B: (rank, in_features).
    """

    form = two_factor.FORM
    A: Tensor
    B: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        return linear(linear(x, self.B), self.A, self.bias)
