"""Options of `resize`."""

from __future__ import annotations

from dataclasses import dataclass

from curconvert.base.checks import at_least, proper_share
from curconvert.base.errors import InputError


@dataclass(frozen=True)
class ResizeOptions:
    """The new size of the whole model. Give one of the two.

    Attributes:
        keep: Share of the original's parameters to keep, embedding included.
        target_parameters: Maximum number of parameters.

    Raises:
        InputError: Neither or both are given, or the value is out of range.
    """

    keep: float | None = None
    target_parameters: int | None = None

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.target_parameters is None):
            raise InputError("resize takes one size: --keep or --target-params")
        if self.keep is not None:
            proper_share("--keep", self.keep)
        if self.target_parameters is not None:
            at_least("--target-params", self.target_parameters, 1)

    @property
    def asked(self) -> str:
        """The size as a command-line option."""
        return f"--target-params {self.target_parameters}" if self.keep is None else f"--keep {self.keep:g}"

    def target(self, before: int) -> int:
        """Return the maximum number of parameters, if the original has `before`."""
        if self.keep is None:
            assert self.target_parameters is not None
            return self.target_parameters
        return int(self.keep * before)
