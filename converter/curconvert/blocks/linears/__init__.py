"""Builds the torch module of each form. It needs only torch and the runtime, so any transformers version can use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from curconvert.blocks.linears.cur import CURLinear
from curconvert.blocks.linears.interpolative import InterpolativeLinear
from curconvert.blocks.linears.plain import plain_linear
from curconvert.blocks.linears.sparse import SparseColumnsLinear, SparseRowsLinear
from curconvert.blocks.linears.two_factor import TwoFactorLinear
from curconvert_runtime.format.forms import form_of
from curconvert_runtime.format.forms.form import INDICES

LINEARS: dict[str, Callable[[Mapping[str, Tensor], Tensor | None], nn.Module]] = {
    "dense": plain_linear,
    "cur": CURLinear,
    "interpolative": InterpolativeLinear,
    "two_factor": TwoFactorLinear,
    "modular_rows": plain_linear,
    "modular_columns": plain_linear,
    "sparse_rows": SparseRowsLinear,
    "sparse_columns": SparseColumnsLinear,
}
"""Function that makes a module from tensors by suffix and a bias, by the form's name."""


def factored_linear(form: str, tensors: Mapping[str, Tensor], bias: Tensor | None = None) -> nn.Module:
    """Return the linear of a form, with float32 factors and bias.

    Args:
        form: Name of the form.
        tensors: The stored tensors by suffix. Index vectors that the product does not need are ignored, and so are
            quantized parts (`R.q`) beside their dequantized tensor (`R`).
        bias: (out_features,) or None; (rank,) for a form that drops outputs.

    Raises:
        ValueError: The form is unknown.
    """
    name = form_of(form).name
    single = {suffix: tensor for suffix, tensor in tensors.items() if "." not in suffix}
    ready = {suffix: part if suffix in INDICES else part.to(torch.float32) for suffix, part in single.items()}
    return LINEARS[name](ready, None if bias is None else bias.to(torch.float32))
