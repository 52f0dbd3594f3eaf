"""The way back through the original model: how the likelihood depends on what leaves each linear.

Forwards keeps the hidden states that enter each block, on disk. Backwards carries the gradient of the log-likelihood of
tokens sampled from the model from block to block, so that only one block is in memory at a time.
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

GRADIENT_TOKENS = 4096  # costs are means over so many tokens: noisy by percents, where choices differ by factors
_STAGE = "sensitivity"
GRADIENT_ROWS = 16  # positions whose logits are differentiated at once


class BackwardPass:
    """Watches a pass over the original model, then goes back through it and keeps each weight row's Fisher information.

    Args:
        rows: Weight names whose rows' Fisher information the evidence receives.
        seed: Samples the tokens.
        evidence: Receives what is found; keeps the hidden states until then.
        progress: Called after each block of the way back.
        journal: Keeps each block of the way back.
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
        """Bring what was kept to the disk."""
        self._evidence.commit()

    def wanted(self) -> Collection[str]:
        """Return the weight names whose linears need gradients."""
        return self._rows

    def advance(self, block: Block, hidden: Batches) -> None:
        """Run one block of the pass forwards; `hidden` becomes the next block's input."""
        if block.index >= self._first():
            for batch in _chosen(hidden):
                self._evidence.save_hidden(block.index, batch, hidden[batch])
        block.advance(hidden)

    def finish(self, stream: BlockStream, hidden: Batches) -> None:
        """Go back from the logits to the first block with a wanted linear.

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
        """Keep what one linear's tokens tell; called block by block, the last block first."""
        if name in self._rows:
            self._evidence.save_fisher_rows(name, samples.fisher_rows)

    def found(self) -> dict[str, Any]:
        """Return, as JSON, what was found so far and is not in the evidence."""
        return {}

    def restore(self, found: Mapping[str, Any]) -> None:
        """Take over what `found` has returned."""

    def _first(self) -> int:
        return min((layer_of(name) for name in self.wanted()), default=0)


def _chosen(hidden: Batches) -> list[int]:
    """Return the batches that gradients are taken of: evenly spread."""
    count = min(-(-GRADIENT_TOKENS // (hidden[0].shape[0] * hidden[0].shape[1])), len(hidden))
    return [int((index + 0.5) * len(hidden) / count) for index in range(count)]


def _head_gradient(stream: BlockStream, hidden: Tensor, generator: torch.Generator) -> Tensor:
    if not bool(torch.isfinite(hidden).all()):
        raise InputError("the model's hidden states overflow on the calibration text; the checkpoint is damaged")
    parts = [stream.likelihood_gradient(part, generator) for part in torch.split(hidden, GRADIENT_ROWS, dim=1)]
    return torch.cat(parts, dim=1)
