"""Healing block by block: each learns to give what the original's block gives, on the healed model's own inputs."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from curconvert.artifact.journal import Journal, State
from curconvert.blocks.skeleton import canonical_parameters, set_tensor
from curconvert.blocks.stream import Block, BlockStream
from curconvert.calibration.text import CalibrationTokens
from curconvert.checkpoint.types import Checkpoint
from curconvert.device import products_in
from curconvert.healing.options import HealOptions
from curconvert.healing.student import trainable
from curconvert.healing.training import Loss, Point, train
from curconvert.parity import linear_of_artifact, stored_tensor
from curconvert_runtime.artifact import Artifact
from curconvert_runtime.fidelity import Progress


def heal_blocks(
    artifact: Artifact,
    checkpoint: Checkpoint,
    tokens: CalibrationTokens,
    options: HealOptions,
    dtype: torch.dtype,
    journal: Journal,
    progress: Progress,
) -> tuple[dict[str, Tensor], dict[str, list[Point]]]:
    """Train each block that has something to train, one in memory at a time.

    In memory beside it: both models' hidden states, 8 bytes for each number of each token.

    Args:
        artifact: The compressed model.
        checkpoint: The original.
        tokens: Training and held-out sequences.
        options: Steps and rates.
        dtype: Of products while training.
        journal: Keeps each block, and the training within one.
        progress: Called after each step.

    Returns:
        The trained tensors by stored name, and each block's curve; its measure is the relative squared error of the
        block's output.
    """
    stream = BlockStream(checkpoint)
    count, micro = len(tokens.calibration), options.batch // options.accumulate
    ids = np.concatenate([tokens.calibration, tokens.probes])
    held_out = np.arange(count, len(ids))
    stream.embed(torch.from_numpy(ids[:1].repeat(micro, axis=0)))  # so that masks of this shape are known
    rounded = BlockStream(checkpoint, getattr(torch, artifact.model["dtype"]))  # as the artifact stores the embedding
    theirs, ours = (torch.cat([one.embed(torch.from_numpy(row[None])) for row in ids]) for one in (stream, rounded))
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
            for row in torch.split(theirs, 1):
                row.copy_(block.forward(row))
            _install(block, artifact)
            parameters = trainable(block.layer, options.train, f"model.layers.{index}.")
            if parameters:
                stage = f"block-{index}"
                loss, exact = (_loss(block, ours, theirs, products) for products in (dtype, torch.float32))
                curves[stage] = train(
                    list(parameters.values()), loss, partial(_mean, exact, held_out), count, options, journal, stage,
                    progress,
                )  # fmt: skip
                healed |= {name: parameter.detach().clone() for name, parameter in parameters.items()}
            for row in torch.split(ours, 1):
                row.copy_(block.forward(row))
        data = {
            "blocks": index + 1,
            "names": list(healed),
            "curves": {name: [vars(point) for point in curve] for name, curve in curves.items()},
        }
        tensors = {"theirs": [theirs], "ours": [ours], "healed": list(healed.values())}
        journal.record("blocks", State(data, tensors))
        progress("blocks", index + 1, stream.num_layers)
    return healed, curves


def _mean(loss: Loss, rows: NDArray[np.intp]) -> float:
    """Return the mean loss of some sequences, one by one."""
    with torch.no_grad():
        return float(torch.stack([loss(rows[i : i + 1]) for i in range(len(rows))]).mean())


def _install(block: Block, artifact: Artifact) -> None:
    """Give a block the weights of the artifact."""
    for matrix in artifact.manifest["matrices"]:
        if matrix["name"] in block.linears and matrix["form"] != "dense":
            block.replace(matrix["name"], linear_of_artifact(artifact, matrix))
    for name, owner, attribute in list(canonical_parameters(block.layer, f"model.layers.{block.index}.")):
        if name in artifact.tensors:
            set_tensor(owner, attribute, stored_tensor(artifact, name).to(torch.float32))


def _loss(block: Block, ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> Loss:
    """Return the squared error of the block's output over that of the output itself, of some sequences."""

    def loss(chosen: NDArray[np.intp]) -> Tensor:
        rows = torch.from_numpy(chosen)
        wanted = theirs[rows]
        with products_in(dtype):
            found = block.trained(ours[rows])
        return functional.mse_loss(found.float(), wanted) / wanted.square().mean()

    return loss
