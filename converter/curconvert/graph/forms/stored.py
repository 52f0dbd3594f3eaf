"""Defines what an emitter gets: the dialect, the input, and the stored tensors of one matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from curconvert.graph.dialect import Dialect
from curconvert.graph.weights import Weight


@dataclass(frozen=True)
class Stored:
    """Returns the initializers of one matrix, and makes each when it is first used.

    Attributes:
        matrix: Returns a factor's initializer by suffix.
        index: Returns an index vector's initializer by suffix.
    """

    matrix: Callable[[str], Weight]
    index: Callable[[str], ir.Value]


FormEmitter: TypeAlias = Callable[[Dialect, ir.Value, Stored], ir.Value]
"""Emits x·Wᵀ for x (batch, sequence, in_features), without the bias."""
