"""Defines the torch linears of forms `sparse_rows` and `sparse_columns`."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear, pad

from curconvert.blocks.linears.factored import FactoredLinear
from curconvert_runtime.format.forms import parts


class SparseRowsLinear(FactoredLinear):
    """`y = [W x; 0][order] + b`: computes the kept outputs; the others are only their bias.

    Attributes:
        weight: (rank, in_features).
        order: (out_features,) int64; output i is element `order[i]` of W x with a zero appended.
    """

    form = parts.SPARSE_ROWS
    weight: Tensor
    order: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        y = pad(linear(x, self.weight), (0, 1)).index_select(-1, self.order)
        return y if self.bias is None else y + self.bias


class SparseColumnsLinear(FactoredLinear):
    """`y = W x[order] + b`: reads only the kept inputs.

    Attributes:
        weight: (out_features, rank).
        order: (rank,) int64, indices of the kept inputs.
    """

    form = parts.SPARSE_COLUMNS
    weight: Tensor
    order: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        return linear(x.index_select(-1, self.order), self.weight, self.bias)
