"""Builds the `quantization_config` of config.json, which tells transformers how compressed linears are stored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from curconvert.base.names import QUANT_METHOD

if TYPE_CHECKING:  # transformers reads this without the converter's other packages
    from curconvert.base.plan import MatrixPlan
    from curconvert_runtime.format.quantized import Packing

QUANTIZATION_VERSION = 1


def quantization_config(matrices: Iterable[MatrixPlan], quantized: Iterable[Packing] = ()) -> dict[str, Any]:
    """Return the entries of `quantization_config`; empty for a dense model.

    Args:
        matrices: Matrices of the final plan.
        quantized: Quantized matrices. Their smallest number of bits goes into the config, because transformers cannot
            load them and its error names the bits.
    """
    found: dict[str, Any] = {}
    for matrix in matrices:
        if matrix.rank is None:
            continue
        found[matrix.name] = {"form": matrix.form, "rank": matrix.rank}
        if matrix.shared:
            found[matrix.name]["shared"] = matrix.sharing
    widths = {packing.layout.bits for packing in quantized}
    if not found and not widths:
        return {}
    bits = {"bits": min(widths)} if widths else {}
    return {"quant_method": QUANT_METHOD, "version": QUANTIZATION_VERSION, "matrices": found, **bits}
