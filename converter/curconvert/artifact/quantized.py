"""Writes quantized matrices."""

from __future__ import annotations

from torch import Tensor

from curconvert.artifact.safetensors_writer import SafetensorsWriter
from curconvert.options.quantization import Quantization
from curconvert.quantization.rounding import quantize
from curconvert.quantization.tensors import relative_error
from curconvert_runtime.format.quantized import part_name


def write_quantized(name: str, weight: Tensor, quantization: Quantization, writer: SafetensorsWriter) -> float:
    """Quantize a matrix by round to nearest, write its parts and return its relative Frobenius error."""
    found = quantize(name, weight, quantization.of_matrix(name).layout)
    for suffix, part in found.parts.items():
        writer.write(part_name(name, suffix), part)
    return relative_error(weight, found)
