"""Heals block by block: each block is trained towards the output of the original's block, on the healed model's input.

The original's block runs on the original's own input.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from curconvert.base.device import products_in
from curconvert.blocks.stream import Block, BlockStream
from curconvert.checkpoint.types import Checkpoint
from curconvert.journal.store import Journal, State
from curconvert.options.heal import HealOptions
from curconvert.training.examples import Data
from curconvert.training.loop import Loss, Point, train
from curconvert.training.start import solve_block
from curconvert.training.stored import Stored, install
from curconvert.training.student import trainable
from curconvert_runtime.checks.fidelity import Progress
from curconvert_runtime.format.artifact import Artifact


def heal_blocks(
    artifact: Artifact,
    checkpoint: Checkpoint,
    data: Data,
    options: HealOptions,
    dtype: torch.dtype,
    journal: Journal,
    progress: Progress,
) -> tuple[dict[str, Tensor], dict[str, list[Point]]]:
    """Train each block that has trainable tensors, with one block in memory at a time.

    With the mode `whole`, blocks are not trained, only solved by the start `als`. Memory also holds the hidden states
    of both models, 8 bytes per hidden unit and token, and a second block for the start `als`.

    Args:
        artifact: The compressed model.
        checkpoint: The original.
        data: Training and held-out sequences of one length.
        options: Steps and rates.
        dtype: Dtype of products while training.
        journal: Records each block, and the training within a block.
        progress: Called after each step.

    Returns:
        The trained tensors by stored name, and each block's training curve. Its measure is the relative squared error
        of the block's output.
    """
    stream = BlockStream(checkpoint)
    count, micro = len(data.training), options.batch // options.accumulate
    ids = np.concatenate([data.training.ids, data.held_out.ids])
    held_out = np.arange(count, len(ids))
    stream.embed(torch.from_numpy(ids[:1].repeat(micro, axis=0)))  # records the masks of this shape
    compressed = BlockStream(Stored(artifact, checkpoint))
    theirs, ours = (torch.cat([one.embed(torch.from_numpy(row[None])) for row in ids]) for one in (stream, compressed))
    compressed.release_table()
    healed: dict[str, Tensor] = {}
    curves: dict[str, list[Point]] = {}
    done = 0
    if state := journal.recall("blocks"):
        done = state.data["blocks"]
        (theirs,), (ours,) = state.restored("theirs"), state.restored("ours")
        healed = dict(zip(state.data["names"], state.restored("healed"), strict=True))
        curves = {name: [Point(**point) for point in curve] for name, curve in state.data["curves"].items()}
    for index in range(done, stream.num_layers):
        with stream.block(index) as block:
            solved = (
                _solved(block, compressed, artifact, theirs[:count], ours[:count]) if options.start == "als" else {}
            )
            for row in torch.split(theirs, 1):
                row.copy_(block.forward(row))
            install(block, artifact)
            parameters = trainable(block.layer, options.train, block.prefix)
            with torch.no_grad():
                for name, value in solved.items():
                    parameters[name].copy_(value)
            if parameters and options.mode == "blocks":
                stage = f"block-{index}"
                loss, exact = (_loss(block, ours, theirs, products) for products in (dtype, torch.float32))
                curves[stage] = train(
                    list(parameters.values()), loss, partial(_mean, exact, held_out), data.training.counts, options,
                    journal, stage, progress,
                )  # fmt: skip
            healed |= {name: parameter.detach().clone() for name, parameter in parameters.items()}
            for row in torch.split(ours, 1):
                row.copy_(block.forward(row))
        kept = {
            "blocks": index + 1,
            "names": list(healed),
            "curves": {name: [vars(point) for point in curve] for name, curve in curves.items()},
        }
        tensors = {"theirs": [theirs], "ours": [ours], "healed": list(healed.values())}
        journal.record("blocks", State(kept, tensors))
        progress("blocks", index + 1, stream.num_layers)
    return healed, curves


def _solved(
    block: Block, compressed: BlockStream, artifact: Artifact, theirs: Tensor, ours: Tensor
) -> dict[str, Tensor]:
    """Return a block's linking factors, solved by least squares; `block` is the original's and does not change."""
    with compressed.block(block.index) as student:
        install(student, artifact)
        return solve_block(block, student, theirs, ours)


def _mean(loss: Loss, rows: NDArray[np.intp]) -> float:
    """Return the mean loss of some sequences, computed one by one."""
    with torch.no_grad():
        return float(torch.stack([loss(rows[i : i + 1]) for i in range(len(rows))]).mean())


def _loss(block: Block, ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> Loss:
    """Return the loss of some sequences: the mean square error of the block's output, relative to its mean square."""

    def loss(chosen: NDArray[np.intp]) -> Tensor:
        rows = torch.from_numpy(chosen)
        wanted = theirs[rows]
        with products_in(dtype):
            found = block.trained(ours[rows])
        return functional.mse_loss(found.float(), wanted) / wanted.square().mean()

    return loss
