"""Defines lists of tensors that are read one at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import overload

from torch import Tensor


class TensorList(Sequence[Tensor]):
    """A list that reads each tensor when it is used."""

    @abstractmethod
    def at(self, index: int) -> Tensor:
        """Return one member.

        Args:
            index: From 0 to length − 1.
        """

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        """Return one member or, in memory, several."""
        number = range(len(self))[index]  # checks the index, and resolves negative ones
        return self.at(number) if isinstance(number, int) else [self.at(i) for i in number]
