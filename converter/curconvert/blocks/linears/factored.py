"""`FactoredLinear`, what the linears of all forms that are products have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from curconvert_runtime.format.forms.form import PROVENANCE, Form


class FactoredLinear(nn.Module):
    """A linear of one form: its factors are frozen parameters, the index vectors that its product reads int64 buffers.

    Attributes:
        form: The registry's entry.
        tuned: Factors that training in transformers changes.
        bias: (out_features,) or None.

    Args:
        tensors: By suffix; others may be among them.
        bias: See above.
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
