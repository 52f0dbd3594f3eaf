"""Options of a sweep."""

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
    """Which methods and sizes a sweep compares, and on which text.

    Attributes:
        keep: Shares of all parameters to keep, embedding included.
        methods: Names of methods. The sweep tries each method at each size.
        text: UTF-8 text to measure fidelity on, with exact KL. None measures on the held-out calibration sequences,
            with a lower bound of KL.
        window: Tokens per window of `text`.
        max_tokens: Maximum number of tokens of `text`.
        keep_artifacts: Keep each artifact, in the folder METHOD-KEEP of the output.
        settings: Options of all conversions, as in `ConvertOptions`: dtype, seed, ridge, rank_multiple, self_text,
            calibration.

    Raises:
        InputError: A value is out of range, unknown or repeated.
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
                raise InputError(f"{name} {','.join(map(str, values))}: a value appears twice")
        for share in self.keep:
            if not 0 < share < 1:
                raise InputError(f"--keep {share:g}: expected shares above 0 and below 1")
        sized = tuple(name for name, method in methods().items() if method.sizes)
        for method in self.methods:
            one_of("--methods", method, sized)
        at_least("--window", self.window, 2)
        at_least("--max-tokens", self.max_tokens, 2)
