"""The calibration sequences on their way through the blocks: the original's states, or the compressed model's."""

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
    """Hidden states that enter the next block.

    Where inputs are compared, the original's states are carried beside the compressed model's from the first compressed
    block on: until then they are the same.

    Args:
        hidden: Batches of (sequences, tokens, hidden_size), which enter the first block; empty where nothing is needed.
        sequential: They are to be the compressed model's.
        compared: The original's are carried beside them, and each input is compared with its own.
        store: Takes other batches.
    """

    def __init__(
        self, hidden: Batches, *, sequential: bool = False, compared: bool = False, store: StateStore = IN_MEMORY
    ) -> None:
        self._hidden, self._store = hidden, store
        self._sequential, self._is_compared = sequential, compared
        self._originals: Batches = []
        self._products = torch.float32

    def choose_dtype(self, checkpoint: Checkpoint, block: Block) -> None:
        """Let the first block decide the dtype of all blocks' products; see `calibration_dtype`."""
        if self._hidden:
            self._products = calibration_dtype(checkpoint, block, self._hidden[0])

    def stages(self, block: Block, targets: Sequence[MatrixPlan]) -> Iterator[Stage]:
        """Run a block that is to be compressed.

        Args:
            block: With its dense weights.
            targets: Linears that are to be compressed.

        Yields:
            Some of them, with the statistics of their inputs by weight name. Compress them before the next ones
            are asked for: where inputs are compared, later ones see the outputs of these linears.
        """
        if self._is_compared:
            yield from self._compared(block, targets)
        else:
            yield targets, self._collected(block, targets)

    def _collected(self, block: Block, targets: Sequence[MatrixPlan]) -> dict[str, InputStatistics]:
        """Collect all inputs in one run; the states become the next block's unless that is to see compressed ones."""
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
        """Compare each distinct input with the original's, which come first: all of them, in one run.

        Where there are fewer tokens than features nothing is compared.
        """
        groups = {group[0].name: group for group in by_input(targets)}
        self._originals = self._originals or self._store.keep(batch.clone() for batch in self._hidden)
        wanted = [name for name, group in groups.items() if group[0].shape[1] <= self._tokens]
        originals = self._inputs(block, wanted)
        # Of few batches the last one is held out; a single one is needed whole.
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
        """Run the original's states through a dense block, and return what enters some linears, batch by batch."""
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
        """Go on from a block that `stages` has run and that is compressed now."""
        if self._sequential:
            self._advance(block, self._hidden)

    def leave_dense(self, block: Block) -> None:
        """Go on from a block that stays as it is."""
        self._advance(block, self._hidden)
        self._advance(block, self._originals)

    def release(self) -> None:
        """Give up what no later block needs."""
        self._hidden.clear()
        self._originals.clear()

    @property
    def products(self) -> str:
        """Name of the dtype of blocks' products."""
        return dtype_name(self._products)

    def tensors(self) -> dict[str, Batches]:
        """Return what it carries, by name."""
        return {"hidden": self._hidden, "originals": self._originals}

    def restore(self, state: State) -> None:
        """Take over what `tensors` has returned, and `products` among the state's data."""
        self._products = torch_dtype(state.data["products"])
        self._hidden = self._store.keep(state.tensors.get("hidden", ()))
        self._originals = self._store.keep(state.tensors.get("originals", ()))

    @property
    def _tokens(self) -> int:
        return sum(batch.shape[0] * batch.shape[1] for batch in self._hidden)

    def _advance(self, block: Block, batches: Batches) -> None:
        block.advance(batches, dtype=self._products)
