"""Backward pass through the original model: the gradient of the likelihood at the output of each linear.

The forward pass saves the hidden states that enter each block to disk. The backward pass carries the gradient of the
log-likelihood of tokens sampled from the model from block to block. Only one block is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from curconvert.base.errors import InputError
from curconvert.base.names import layer_of
from curconvert.blocks.stream import Block, BlockStream
from curconvert.calibration.batches import Batches
from curconvert.calibration.evidence import Evidence
from curconvert.calibration.gradients import GradientCollector, GradientSamples
from curconvert.journal.store import UNRECORDED, Journal, State
from curconvert_runtime.checks.fidelity import Progress

# Costs are means over this number of tokens. Their noise is a few percent, far below the differences that count.
GRADIENT_TOKENS = 4096
_STAGE = "sensitivity"
GRADIENT_ROWS = 16  # positions whose logits are differentiated at once


class BackwardPass:
    """Measures the Fisher information of each weight row, with a backward pass after the pass over the original model.

    Args:
        rows: Names of the weights whose rows are measured.
        seed: Seed for sampling the tokens.
        evidence: Receives the results, and holds the hidden states until the backward pass has used them.
        progress: Called after each block of the backward pass.
        journal: Records each block of the backward pass.
    """

    def __init__(
        self,
        rows: Collection[str],
        seed: int,
        evidence: Evidence,
        progress: Progress,
        journal: Journal = UNRECORDED,
    ) -> None:
        self._rows, self._seed = frozenset(rows), seed
        self._evidence, self._progress, self._journal = evidence, progress, journal

    def commit(self) -> None:
        """Write the evidence durably to disk."""
        self._evidence.commit()

    def wanted(self) -> Collection[str]:
        """Return the weight names whose linears need gradients."""
        return self._rows

    def advance(self, block: Block, hidden: Batches) -> None:
        """Run one block of the forward pass; its output replaces `hidden`."""
        if block.index >= self._first():
            for batch in _chosen(hidden):
                self._evidence.save_hidden(block.index, batch, hidden[batch])
        block.advance(hidden)

    def finish(self, stream: BlockStream, hidden: Batches) -> None:
        """Run the backward pass, from the logits to the first block with a wanted linear.

        Raises:
            InputError: The last block's output is not finite.
        """
        chosen, last = _chosen(hidden), stream.num_layers
        if state := self._journal.recall(_STAGE):
            gradients, last = state.restored("gradients"), state.data["block"]
            self.restore(state.data)
        else:
            generator = torch.Generator().manual_seed(self._seed)
            gradients = [_head_gradient(stream, hidden[batch], generator) for batch in chosen]
        hidden.clear()
        for index in reversed(range(self._first(), last)):
            with stream.block(index) as block:
                collector = GradientCollector({n: m for n, m in block.linears.items() if n in self.wanted()})
                with collector.collecting():
                    for position, batch in enumerate(chosen):
                        before = self._evidence.hidden(index, batch)
                        gradients[position] = block.backward(before, gradients[position])
            for name, samples in collector.samples():
                self.take(name, samples)
            state = State({"block": index, **self.found()}, {"gradients": gradients})
            self._journal.record(_STAGE, state, [self.commit])
            for batch in chosen:
                self._evidence.drop_hidden(index, batch)
            self._progress(_STAGE, stream.num_layers - index, stream.num_layers)

    def take(self, name: str, samples: GradientSamples) -> None:
        """Store the results from one linear's tokens; called block by block, the last block first."""
        if name in self._rows:
            self._evidence.save_fisher_rows(name, samples.fisher_rows)

    def found(self) -> dict[str, Any]:
        """Return the results so far that are not in the evidence, as JSON."""
        return {}

    def restore(self, found: Mapping[str, Any]) -> None:
        """Restore the results that `found` returned."""

    def _first(self) -> int:
        return min((layer_of(name) for name in self.wanted()), default=0)


def _chosen(hidden: Batches) -> list[int]:
    """Return the indices of the batches used for gradients, evenly spread."""
    count = min(-(-GRADIENT_TOKENS // (hidden[0].shape[0] * hidden[0].shape[1])), len(hidden))
    return [int((index + 0.5) * len(hidden) / count) for index in range(count)]


def _head_gradient(stream: BlockStream, hidden: Tensor, generator: torch.Generator) -> Tensor:
    if not bool(torch.isfinite(hidden).all()):
        raise InputError("the model's hidden states overflow on the calibration text; the checkpoint is damaged")
    parts = [stream.likelihood_gradient(part, generator) for part in torch.split(hidden, GRADIENT_ROWS, dim=1)]
    return torch.cat(parts, dim=1)
