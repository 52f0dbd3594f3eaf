"""Defines the torch linear of form `interpolative`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from curconvert.blocks.linears.factored import FactoredLinear
from curconvert_runtime.format.forms import interpolative


class InterpolativeLinear(FactoredLinear):
    """`y = [R x; T (R x)][order] + b`: R computes some outputs, and T combines them into the others.

    Attributes:
        R: (rank, in_features) rows of the weight, or of its best approximation.
        T: (out_features − rank, rank) coefficients of the other rows.
        order: (out_features,) int64; output i is element `order[i]` of the two concatenated products.
    """

    form = interpolative.FORM
    R: Tensor
    T: Tensor
    order: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        kept = linear(x, self.R)
        y = torch.cat([kept, linear(kept, self.T)], dim=-1).index_select(-1, self.order)
        return y if self.bias is None else y + self.bias
