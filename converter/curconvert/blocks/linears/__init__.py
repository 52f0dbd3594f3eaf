"""The torch module of each form. Beside torch it needs the runtime only: transformers of any version imports it."""

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
"""From tensors by suffix and a bias to a module, by the form's name."""


def factored_linear(form: str, tensors: Mapping[str, Tensor], bias: Tensor | None = None) -> nn.Module:
    """Build the linear of a form, with float32 factors and bias.

    Args:
        form: Its name.
        tensors: The stored tensors by suffix; index vectors that the product does not need may be among them, and the
            parts of quantized ones (`R.q`) beside what they stand for (`R`).
        bias: (out_features,) or None; of a form that cuts its outputs that of the kept rows, (rank,).

    Raises:
        ValueError: The form is unknown.
    """
    name = form_of(form).name
    single = {suffix: tensor for suffix, tensor in tensors.items() if "." not in suffix}
    ready = {suffix: part if suffix in INDICES else part.to(torch.float32) for suffix, part in single.items()}
    return LINEARS[name](ready, None if bias is None else bias.to(torch.float32))
