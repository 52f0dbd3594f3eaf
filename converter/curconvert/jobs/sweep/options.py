"""What a sweep is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curconvert.base.checks import at_least, one_of
from curconvert.base.errors import InputError
from curconvert.methods.core.registry import methods

DEFAULT_KEEP = (0.95, 0.9, 0.8, 0.7)


@dataclass(frozen=True)
class SweepOptions:
    """Points of a sweep: each method at each size.

    Attributes:
        keep: Shares of the model's parameters, embedding included.
        methods: Names of presets.
        text: UTF-8 text to measure fidelity on, exactly; None measures on the held-out calibration sequences, from
            the original's stored answers, as a conversion's verification does (a lower bound of KL).
        window: Tokens per sequence of `text`.
        max_tokens: Most tokens taken from `text`.
        keep_artifacts: Whether the artifacts stay beside the table.
        settings: Options of every conversion, see `ConvertOptions`: dtype, seed, ridge, rank_multiple, self_text,
            calibration.
    """

    keep: tuple[float, ...] = DEFAULT_KEEP
    methods: tuple[str, ...] = ("auto",)
    text: Path | None = None
    window: int = 512
    max_tokens: int = 16384
    keep_artifacts: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in (("--keep", self.keep), ("--methods", self.methods)):
            if not values:
                raise InputError(f"{name} is empty: give at least one value")
            if len(set(values)) < len(values):
                raise InputError(f"{name} {','.join(map(str, values))}: a value stands there twice")
        for share in self.keep:
            if not 0 < share < 1:
                raise InputError(f"--keep {share:g}: expected shares above 0 and below 1")
        sized = tuple(name for name, method in methods().items() if method.sizes)
        for method in self.methods:
            one_of("--methods", method, sized)
        at_least("--window", self.window, 2)
        at_least("--max-tokens", self.max_tokens, 2)
