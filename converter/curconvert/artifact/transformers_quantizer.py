"""Lets `AutoModelForCausalLM.from_pretrained` load an artifact, by a class that transformers calls a quantizer.

`import curconvert` registers it, no matter whether you import transformers before or after. It works with
transformers 4.57 and 5. transformers' own model code runs, without remote code. Only the compressed linears are
replaced. `save_pretrained` writes files that `from_pretrained` reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from curconvert.artifact.quantization_config import QUANTIZATION_VERSION
from curconvert.base.errors import InputError, UnsupportedError
from curconvert.base.names import QUANT_METHOD
from curconvert.blocks.linears import factored_linear
from curconvert.blocks.linears.factored import FactoredLinear
from curconvert.families.family import Family, family_of
from curconvert_runtime.format.forms import form_of
from curconvert_runtime.format.forms.form import Shared


@register_quantization_config(QUANT_METHOD)
class CurConvertConfig(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is not typed
    """Holds the `quantization_config` of an artifact's config.json.

    Args:
        matrices: `form` and `rank` of each compressed matrix, by the name of its weight; also `shared`, as in the
            manifest, if two matrices share R.
        version: Version of this layout.
        bits: Bits of quantized matrices; None if no matrix is quantized.

    Raises:
        InputError: The layout has another version.
        UnsupportedError: Matrices are quantized.
    """

    def __init__(
        self,
        matrices: Mapping[str, Mapping[str, Any]],
        version: int = QUANTIZATION_VERSION,
        bits: int | None = None,
        **_: object,
    ) -> None:
        if bits is not None:
            raise UnsupportedError(
                f"config.json: the weights are quantized to int{bits}, which transformers does not load; serve the "
                "artifact's graphs, or convert without --quantize"
            )
        if version != QUANTIZATION_VERSION:
            raise InputError(
                f"config.json: quantization_config of version {version}: expected {QUANTIZATION_VERSION}; "
                "install a newer curconvert"
            )
        self.quant_method = QUANT_METHOD
        self.version = version
        self.matrices = {name: dict(matrix) for name, matrix in matrices.items()}


@register_quantizer(QUANT_METHOD)
class CurConvertQuantizer(HfQuantizer):  # type: ignore[misc]
    """Replaces dense linears by factored ones before transformers loads the weights.

    U of `CURLinear` can be trained; all other factors are frozen.
    """

    requires_calibration = True  # from_pretrained(model, quantization_config=…) cannot compress a dense checkpoint

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:
        """Return True: factors are plain tensors, which can always be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: gradients pass through every form."""
        return True

    def _convert_model_for_quantization(self, model: nn.Module) -> None:
        """Do nothing, because experts are never compressed. transformers 4's own method needs accelerate."""

    def _process_model_before_weight_loading(self, model: Any, **_: object) -> Any:
        matrices = self.quantization_config.matrices
        config = model.config.to_dict()
        family = family_of(config)
        for layer in model.get_submodule(family.blocks):
            _unfuse(layer, family, config)
        for name, matrix in matrices.items():
            path = name.removesuffix(".weight")
            old = model.get_submodule(path)
            shared = Shared.of(matrix)
            new = _placeholder(old, matrix["form"], int(matrix["rank"]), shared)
            if shared and shared.matrices[0] != name:
                delattr(new, str(form_of(matrix["form"]).common))  # stored once, under its owner's name
            model.set_submodule(path, new)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: object) -> Any:
        for name, matrix in self.quantization_config.matrices.items():
            module = model.get_submodule(name.removesuffix(".weight"))
            shared = Shared.of(matrix)
            if shared and shared.matrices[0] != name:
                # Do not register it as a parameter: it would be stored twice.
                common, owner = str(form_of(matrix["form"]).common), shared.matrices[0].removesuffix(".weight")
                module.__dict__[common] = getattr(model.get_submodule(owner), common)
            for suffix, parameter in module.named_parameters(recurse=False):
                parameter.requires_grad_(isinstance(module, FactoredLinear) and suffix in module.tuned)
        return model


class _Joined(nn.Module):
    """Computes a fused projection from separate linears, which are the parent's modules and keep their usual names."""

    def __init__(self, parent: nn.Module, parts: tuple[str, ...]) -> None:
        super().__init__()
        self.__dict__["parent"] = parent  # not as a submodule of its own child
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the parts' outputs, in the order in which the fused weight stores its rows."""
        return torch.cat([self.__dict__["parent"].get_submodule(part)(x) for part in self.parts], dim=-1)


def _unfuse(layer: nn.Module, family: Family, config: Mapping[str, Any]) -> None:
    """Replace a block's fused projections by the separate linears that artifacts store."""
    for path in family.fused:
        fused = layer.get_submodule(path)
        assert isinstance(fused, nn.Linear)
        parent = layer.get_submodule(path.rpartition(".")[0])
        parts = family.parts(config, path)
        for part, size in parts.items():
            linear = nn.Linear(fused.in_features, size, fused.bias is not None, device="meta", dtype=fused.weight.dtype)
            parent.add_module(part, linear)
        setattr(parent, path.rpartition(".")[2], _Joined(parent, tuple(parts)))


def _placeholder(old: nn.Module, name: str, rank: int, shared: Shared | None) -> nn.Module:
    """Return a form's module with tensors on the meta device, in the dtype of the replaced linear."""
    assert isinstance(old, nn.Linear)
    form, shape, dtype = form_of(name), (old.out_features, old.in_features), old.weight.dtype
    tensors = {s: torch.empty(size, device="meta") for s, size in form.shapes(shape, rank, shared).items()}
    indices = {
        suffix: torch.empty(size, dtype=torch.int32, device="meta")
        for suffix, size in form.index_lengths(shape, rank, shared).items()
    }
    size = rank if form.cuts_outputs else old.out_features
    bias = None if old.bias is None else torch.empty(size, device="meta")
    module = factored_linear(name, {**tensors, **indices}, bias).to(dtype)
    for suffix, vector in indices.items():  # all index vectors are stored, also those that no product needs
        module.register_buffer(suffix, vector)
    return module
