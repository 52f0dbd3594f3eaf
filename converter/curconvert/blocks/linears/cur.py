"""Defines the torch linear of form `cur`."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from curconvert.blocks.linears.factored import FactoredLinear
from curconvert_runtime.format.forms import cur


class CURLinear(FactoredLinear):
    """`y = C (U (R x)) + b`, the product of three stored factors.

    Attributes:
        C: (out_features, rank) columns of the original weight.
        U: (rank, rank) linking matrix.
        R: (rank, in_features) rows of the original weight.
    """

    form = cur.FORM
    tuned = ("U",)
    C: Tensor
    U: Tensor
    R: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        return linear(linear(linear(x, self.R), self.U), self.C, self.bias)
