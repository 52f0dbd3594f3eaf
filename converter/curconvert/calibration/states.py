"""Carries the hidden states of the calibration sequences from block to block while blocks are compressed.

By default they are the original model's. With `--sequential` they are the compressed model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from curconvert.base.dtypes import dtype_name, torch_dtype
from curconvert.base.plan import MatrixPlan
from curconvert.blocks.precision import calibration_dtype
from curconvert.blocks.stream import Block
from curconvert.calibration.batches import IN_MEMORY, Batches, StateStore
from curconvert.calibration.statistics import HELD_OUT, StatisticsCollector, moments_of
from curconvert.checkpoint.types import Checkpoint
from curconvert.families.roles import by_input
from curconvert.journal.store import State
from curconvert.linalg.statistics import InputStatistics

Stage = tuple[Sequence[MatrixPlan], Mapping[str, InputStatistics]]


class CalibrationStates:
    """Holds the hidden states that enter the next block, and collects the input statistics of its linears.

    With `compared`, it also carries the original model's states, from the first compressed block. Before that block
    both are equal.

    Args:
        hidden: Batches of (sequences, tokens, hidden_size) that enter the first block; empty if statistics are known.
        sequential: Whether to carry the compressed model's states instead of the original's.
        compared: Whether to carry both and to measure how each linear's input differs from the original's.
        store: Keeps further batches.
    """

    def __init__(
        self, hidden: Batches, *, sequential: bool = False, compared: bool = False, store: StateStore = IN_MEMORY
    ) -> None:
        self._hidden, self._store = hidden, store
        self._sequential, self._is_compared = sequential, compared
        self._originals: Batches = []
        self._products = torch.float32

    def choose_dtype(self, checkpoint: Checkpoint, block: Block) -> None:
        """Choose the dtype of all blocks' matrix products, measured on the first block; see `calibration_dtype`."""
        if self._hidden:
            self._products = calibration_dtype(checkpoint, block, self._hidden[0])

    def stages(self, block: Block, targets: Sequence[MatrixPlan]) -> Iterator[Stage]:
        """Run a block before it is compressed, and yield its targets in groups with their input statistics.

        Compress each yielded group before resuming the generator: with `compared`, later groups see its output.

        Args:
            block: The block with its dense weights.
            targets: The linears to compress.

        Yields:
            Some of the targets, and the statistics of their inputs by weight name.
        """
        if self._is_compared:
            yield from self._compared(block, targets)
        else:
            yield targets, self._collected(block, targets)

    def _collected(self, block: Block, targets: Sequence[MatrixPlan]) -> dict[str, InputStatistics]:
        """Collect all inputs in one run; unless sequential, the dense block's output replaces the states."""
        linears = {target.name: block.linears[target.name] for target in targets}
        collector = StatisticsCollector(linears, tokens=self._tokens)
        with collector.collecting():
            if self._sequential:
                for batch in self._hidden:
                    block.forward(batch, dtype=self._products)
            else:
                self._advance(block, self._hidden)
        return {name: statistics for names, statistics in collector.groups() for name in names}

    def _compared(self, block: Block, targets: Sequence[MatrixPlan]) -> Iterator[Stage]:
        """Yield each group of linears that share an input, with statistics that compare it with the original's.

        The original's inputs are collected first, all in one run. An input with more features than there are tokens is
        not compared.
        """
        groups = {group[0].name: group for group in by_input(targets)}
        self._originals = self._originals or self._store.keep(batch.clone() for batch in self._hidden)
        wanted = [name for name, group in groups.items() if group[0].shape[1] <= self._tokens]
        originals = self._inputs(block, wanted)
        # With few batches, hold out the last one. With a single batch, hold out none.
        every = min(HELD_OUT, len(self._hidden)) if len(self._hidden) > 1 else None
        for name, group in groups.items():
            compared = originals.pop(name, None)
            size, parts = group[0].shape[1], every if compared else None
            moments = moments_of(size, block.device, tokens=self._tokens, every=parts)
            for number, batch in enumerate(self._hidden):
                moments.add(
                    block.input_of(name, batch, dtype=self._products),
                    compared[number] if compared else None,
                )
            statistics = moments.result()
            yield group, {plan.name: statistics for plan in group}

    def _inputs(self, block: Block, names: Sequence[str]) -> dict[str, list[Tensor]]:
        """Run the original's states through a dense block, and return the inputs of some linears, batch by batch."""
        found: dict[str, list[Tensor]] = {name: [] for name in names}

        def keeping(name: str):  # type: ignore[no-untyped-def]  # torch's hook type is not public
            def keep(_linear: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                found[name].append(inputs[0].to("cpu"))

            return keep

        handles = [block.linears[name].register_forward_pre_hook(keeping(name)) for name in names]
        try:
            self._advance(block, self._originals)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def leave_compressed(self, block: Block) -> None:
        """Advance the states past a block that `stages` has run and that is now compressed."""
        if self._sequential:
            self._advance(block, self._hidden)

    def leave_dense(self, block: Block) -> None:
        """Advance the states past a block that stays dense."""
        self._advance(block, self._hidden)
        self._advance(block, self._originals)

    def release(self) -> None:
        """Release all hidden states, after the last block that needs them."""
        self._hidden.clear()
        self._originals.clear()

    @property
    def products(self) -> str:
        """Name of the dtype of the blocks' matrix products."""
        return dtype_name(self._products)

    def tensors(self) -> dict[str, Batches]:
        """Return the hidden states for the journal, by name."""
        return {"hidden": self._hidden, "originals": self._originals}

    def restore(self, state: State) -> None:
        """Restore what `tensors` returned, and `products` from the state's data."""
        self._products = torch_dtype(state.data["products"])
        self._hidden = self._store.keep(state.tensors.get("hidden", ()))
        self._originals = self._store.keep(state.tensors.get("originals", ()))

    @property
    def _tokens(self) -> int:
        return sum(batch.shape[0] * batch.shape[1] for batch in self._hidden)

    def _advance(self, block: Block, batches: Batches) -> None:
        block.advance(batches, dtype=self._products)
