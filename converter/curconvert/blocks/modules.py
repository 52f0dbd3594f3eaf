"""The modules that stand in for transformers' own: factored linears, split fused projections, a chunked head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from curconvert_runtime.format.forms import FORMS, INDICES

if TYPE_CHECKING:  # transformers 4 imports this module without what rounding needs
    from curconvert.blocks.quantised import Quantised

_HEAD_CHUNK = 8192  # vocabulary rows per product: bounds the float32 copy of a half-precision lm_head


class CURLinear(nn.Module):
    """`y = C (U (R x)) + b`, the product of three stored factors.

    Attributes:
        C: (out_features, rank) columns of the original weight.
        U: (rank, rank) linking matrix.
        R: (rank, in_features) rows of the original weight.
        bias: (out_features,) or None.
    """

    bias: Tensor | None

    def __init__(self, C: Tensor, U: Tensor, R: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.C = nn.Parameter(C, requires_grad=False)
        self.U = nn.Parameter(U, requires_grad=False)
        self.R = nn.Parameter(R, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        x = nn.functional.linear(nn.functional.linear(x, self.R), self.U)
        return nn.functional.linear(x, self.C, self.bias)


class InterpolativeLinear(nn.Module):
    """`y = [R x; T (R x)][order] + b`: some outputs are stored products, the others combinations of them.

    Attributes:
        R: (rank, in_features) rows of the weight, or of its best approximation.
        T: (out_features − rank, rank) coefficients of the other rows.
        order: (out_features,) int64; output i is element `order[i]` of the two products laid end to end.
        bias: (out_features,) or None.
    """

    bias: Tensor | None
    order: Tensor

    def __init__(self, R: Tensor, T: Tensor, order: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.R = nn.Parameter(R, requires_grad=False)
        self.T = nn.Parameter(T, requires_grad=False)
        self.register_buffer("order", order.to(torch.int64))
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        kept = nn.functional.linear(x, self.R)
        y = torch.cat([kept, nn.functional.linear(kept, self.T)], dim=-1).index_select(-1, self.order)
        return y if self.bias is None else y + self.bias


class TwoFactorLinear(nn.Module):
    """`y = A (B x) + b`.

    Attributes:
        A: (out_features, rank).
        B: (rank, in_features).
        bias: (out_features,) or None.
    """

    bias: Tensor | None

    def __init__(self, A: Tensor, B: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.A = nn.Parameter(A, requires_grad=False)
        self.B = nn.Parameter(B, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        return nn.functional.linear(nn.functional.linear(x, self.B), self.A, self.bias)


class _IndexedLinear(nn.Module):
    """A smaller weight, (rows, columns), and the int64 vector `order` that puts it in its place."""

    bias: Tensor | None
    order: Tensor

    def __init__(self, weight: Tensor, order: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("order", order.to(torch.int64))
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)


class SparseRowsLinear(_IndexedLinear):
    """`y = [W x; 0][order] + b`: some outputs are computed, the others are their bias.

    Attributes:
        weight: (rank, in_features).
        order: (out_features,) int64; output i is element `order[i]` of W x with a zero behind it.
        bias: (out_features,) or None.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        y = nn.functional.pad(nn.functional.linear(x, self.weight), (0, 1)).index_select(-1, self.order)
        return y if self.bias is None else y + self.bias


class SparseColumnsLinear(_IndexedLinear):
    """`y = W x[order] + b`: some inputs are read.

    Attributes:
        weight: (out_features, rank).
        order: (rank,) int64, the inputs.
        bias: (out_features,) or None.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        return nn.functional.linear(x.index_select(-1, self.order), self.weight, self.bias)


def factored_linear(form: str, tensors: Mapping[str, Tensor], bias: Tensor | None = None) -> nn.Module:
    """Build the linear of a form, with float32 factors and bias.

    Args:
        form: One of `curconvert_runtime.format.forms.FORMS`, or `dense`.
        tensors: The stored tensors by suffix; index vectors that the product does not need may be among them, and the
            parts of quantised ones (`R.q`) beside what they stand for (`R`).
        bias: (out_features,) or None; for `modular_rows` that of the kept rows, (rank,).

    Raises:
        ValueError: The form is unknown.
    """
    floats = {suffix: tensor for suffix, tensor in tensors.items() if suffix not in INDICES and "." not in suffix}
    factors = {suffix: tensor.to(torch.float32) for suffix, tensor in floats.items()}
    bias = None if bias is None else bias.to(torch.float32)
    if form == "cur":
        return CURLinear(factors["C"], factors["U"], factors["R"], bias)
    if form == "interpolative":
        return InterpolativeLinear(factors["R"], factors["T"], tensors["order"], bias)
    if form == "two_factor":
        return TwoFactorLinear(factors["A"], factors["B"], bias)
    if form in ("dense", "modular_rows", "modular_columns"):
        return _smaller_linear(factors["weight"], bias)
    if form == "sparse_rows":
        return SparseRowsLinear(factors["weight"], tensors["order"], bias)
    if form == "sparse_columns":
        return SparseColumnsLinear(factors["weight"], tensors["order"], bias)
    raise ValueError(f"form {form!r}: expected one of {', '.join(FORMS)}")


def _smaller_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Build a plain linear of the size of its weight, (out_features, in_features)."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


class ChunkedHead(nn.Module):
    """An lm_head over a memory-mapped weight of any float dtype, multiplied in float32 by blocks of vocabulary rows."""

    def __init__(
        self, weight: Tensor | Quantised, bias: Tensor | None = None, deployed: torch.dtype | None = None
    ) -> None:
        super().__init__()
        # Plain attributes: the mapped file must not be moved or cast by module-wide calls.
        self._weight, self._bias, self._deployed = weight, bias, deployed

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (…, hidden_size) to (…, vocab_size) logits."""
        chunks = [hidden @ rows.to(hidden.dtype).T for rows in self._rows()]
        logits = torch.cat(chunks, dim=-1)
        return logits if self._bias is None else logits + self._rounded(self._bias, hidden.dtype)

    def _rows(self) -> Iterator[Tensor]:
        if isinstance(self._weight, Tensor):
            for rows in torch.split(self._weight, _HEAD_CHUNK):
                yield rows.to(self._deployed or rows.dtype)
        else:
            for start in range(0, self._weight.shape[0], _HEAD_CHUNK):
                yield self._weight.rows(slice(start, start + _HEAD_CHUNK))

    def _rounded(self, part: Tensor, dtype: torch.dtype) -> Tensor:
        return part.to(self._deployed or part.dtype).to(dtype)
