"""The calibration sequences on their way through the blocks, by the method's rule of what a block is calibrated on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from curconvert.base.plan import MatrixPlan, by_input
from curconvert.blocks.stream import Block
from curconvert.calibration.batches import Batches, Keeping
from curconvert.calibration.statistics import HELD_OUT, StatisticsCollector, moments_of
from curconvert.journal.store import State
from curconvert.linalg.statistics import InputStatistics
from curconvert.options.convert import ConvertOptions

Stage = tuple[Sequence[MatrixPlan], Mapping[str, InputStatistics]]


class CalibrationStates:
    """Hidden states that enter the next block.

    With the sequential rule these are the compressed model's. Where targets are mixed (`ConvertOptions.mixes_targets`)
    the original's are carried beside them from the first compressed block on: until then they are the same.

    Args:
        hidden: Batches of (sequences, tokens, hidden_size), which enter the first block; empty where nothing is needed.
        options: The rule.
        keeping: Where other batches are kept.

    Attributes:
        products: Dtype of the blocks' products.
    """

    def __init__(self, hidden: Batches, options: ConvertOptions, keeping: Keeping = list) -> None:
        self._hidden, self._options, self._keeping = hidden, options, keeping
        self._originals: Batches = []
        self.products = torch.float32

    @property
    def first(self) -> Tensor | None:
        """The first batch."""
        return self._hidden[0] if self._hidden else None

    def stages(self, block: Block, targets: Sequence[MatrixPlan]) -> Iterator[Stage]:
        """Run a block that is to be compressed.

        Args:
            block: With its dense weights.
            targets: Linears that are to be compressed.

        Yields:
            Some of them, with the statistics of their inputs by weight name. They are to be compressed before the next
            ones are asked for: where targets are mixed, later inputs are those that these linears then lead to.
        """
        if self._options.mixes_targets:
            yield from self._compared(block, targets)
        else:
            yield targets, self._collected(block, targets)

    def _collected(self, block: Block, targets: Sequence[MatrixPlan]) -> dict[str, InputStatistics]:
        """Collect all inputs in one run; the states become the next block's unless that is to see compressed ones."""
        linears = {target.name: block.linears[target.name] for target in targets}
        collector = StatisticsCollector(linears, tokens=self._tokens)
        with collector.collecting():
            if self._options.sequential:
                for batch in self._hidden:
                    block.forward(batch, dtype=self.products)
            else:
                self._advance(block, self._hidden)
        return {name: statistics for names, statistics in collector.groups() for name in names}

    def _compared(self, block: Block, targets: Sequence[MatrixPlan]) -> Iterator[Stage]:
        """Compare each distinct input with the original's, which come first: all of them, in one run.

        Where there are fewer tokens than features nothing is compared.
        """
        groups = {group[0].name: group for group in by_input(targets)}
        self._originals = self._originals or self._keeping(batch.clone() for batch in self._hidden)
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
                    block.input_of(name, batch, dtype=self.products),
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
        if self._options.sequential:
            self._advance(block, self._hidden)

    def leave_dense(self, block: Block) -> None:
        """Go on from a block that stays as it is."""
        self._advance(block, self._hidden)
        self._advance(block, self._originals)

    def release(self) -> None:
        """Give up what no later block needs."""
        self._hidden.clear()
        self._originals.clear()

    def tensors(self) -> dict[str, Batches]:
        """Return what it carries, by name."""
        return {"hidden": self._hidden, "originals": self._originals}

    def restore(self, state: State) -> None:
        """Take over what `tensors` has returned."""
        self._hidden = self._keeping(state.tensors.get("hidden", ()))
        self._originals = self._keeping(state.tensors.get("originals", ()))

    @property
    def _tokens(self) -> int:
        return sum(batch.shape[0] * batch.shape[1] for batch in self._hidden)

    def _advance(self, block: Block, batches: Batches) -> None:
        block.advance(batches, dtype=self.products)
