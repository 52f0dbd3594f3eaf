"""Defines `FactoredLinear`, the base of the linears of all forms that store factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from curconvert_runtime.format.forms.form import PROVENANCE, Form


class FactoredLinear(nn.Module):
    """A linear of one form. Factors are frozen parameters; index vectors that its product reads are int64 buffers.

    Attributes:
        form: The runtime's description of the form.
        tuned: Suffixes of the factors that training in transformers changes.
        bias: (out_features,) or None.

    Args:
        tensors: Tensors by suffix; those that the form does not need are ignored.
        bias: (out_features,) or None.
    """

    form: ClassVar[Form]
    tuned: ClassVar[tuple[str, ...]] = ()
    bias: Tensor | None

    def __init__(self, tensors: Mapping[str, Tensor], bias: Tensor | None = None) -> None:
        super().__init__()
        for suffix in self.form.factors:
            setattr(self, suffix, nn.Parameter(tensors[suffix], requires_grad=False))
        for suffix in self.form.indices:
            if f".{suffix}" not in PROVENANCE:
                self.register_buffer(suffix, tensors[suffix].to(torch.int64))
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
