"""Gathers the input statistics of the original model's linears, in one pass that serves every size and method."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from curconvert.base.errors import InputError
from curconvert.blocks.stream import Block
from curconvert.calibration.evidence import Evidence
from curconvert.calibration.statistics import StatisticsCollector


class Gathering:
    """Watches blocks of the original model and stores the mean and the Gram matrix of their linears' inputs.

    Args:
        targets: Weight names.
        evidence: Receives the statistics.
        exact: See `StatisticsCollector`.
        tokens: Number of calibration tokens; see `StatisticsCollector`.
        split: Names of linears for which a part of the tokens is held out.
    """

    def __init__(
        self, targets: Collection[str], evidence: Evidence, *, exact: bool, tokens: int, split: Collection[str] = ()
    ) -> None:
        self._targets, self._evidence = frozenset(targets), evidence
        self._exact, self._tokens, self._split = exact, tokens, split

    def commit(self) -> None:
        """Write the evidence durably to disk."""
        self._evidence.commit()

    @contextmanager
    def watching(self, block: Block) -> Iterator[None]:
        """Watch every forward call of a block inside the context, then store the statistics.

        Raises:
            InputError: An input overflows.
        """
        linears = {name: module for name, module in block.linears.items() if name in self._targets}
        collector = StatisticsCollector(linears, exact=self._exact, split=self._split, tokens=self._tokens)
        with collector.collecting():
            yield
        for names, statistics in collector.groups():
            if not statistics.finite:
                raise InputError(
                    f"{names[0]}: its inputs overflow on the calibration text; an earlier weight is damaged"
                )
            self._evidence.save_statistics(names, statistics)
