"""Copies an artifact with new values for some tensors, and computes the probe outputs of the result.

Files, sizes and graphs stay the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from curconvert.artifact.safetensors_writer import save_tensors
from curconvert.base.dtypes import torch_dtype
from curconvert.base.errors import InputError
from curconvert.base.finite import all_finite
from curconvert.blocks.cache import cache_argument
from curconvert.blocks.stream import BlockStream
from curconvert.calibration.parity_probe import ParityProbe, collected
from curconvert.calibration.probes import probe_tensors
from curconvert.checkpoint.types import Checkpoint
from curconvert.training.stored import Stored, install
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.files import COMPONENTS, PROBES, SCORES
from curconvert_runtime.format.probes import CompressedProbe, OriginalProbe


def copy_with(artifact: Artifact, work: Path, values: Mapping[str, Tensor]) -> None:
    """Copy an artifact's files into an empty folder, with new values for some tensors.

    The manifest is not copied. The components are not copied: they belong to the old factors.

    Args:
        artifact: The artifact to copy.
        work: The folder.
        values: By stored name, in the stored shape; rounded to the stored dtype.

    Raises:
        InputError: A value does not fit the stored dtype.
    """
    for name in artifact.manifest["files"].keys() - {SCORES, COMPONENTS}:
        shutil.copyfile(artifact.path / name, work / name)
    dtype = torch_dtype(artifact.model["dtype"])
    for name, value in values.items():
        stored, header = value.to(dtype).contiguous(), artifact.tensors[name]
        if not all_finite(stored):
            raise InputError(f"{name}: does not fit {artifact.model['dtype']} after healing; lower --learning-rate")
        with (work / header.file.name).open("r+b") as file:
            file.seek(header.offset)
            file.write(stored.view(torch.uint8).numpy().tobytes())


def write_probes(folder: Path, original: OriginalProbe, compressed: CompressedProbe) -> None:
    """Write the probe file into a folder, from the original's outputs and the new compressed model's outputs."""
    tensors = probe_tensors(original, compressed)
    save_tensors(folder / PROBES, {name: torch.from_numpy(array) for name, array in tensors.items()})


def outputs_of_model(asked: CompressedProbe, model: nn.Module) -> CompressedProbe:
    """Return a compressed model's outputs on the parity sequences of an existing probe.

    Args:
        asked: The probe with the token ids.
        model: The whole model in float32, with weights rounded to the stored dtype.
    """
    logits, first, last = [], [], []
    for row, length in zip(asked.ids, asked.lengths, strict=True):
        cache, tokens = DynamicCache(), torch.from_numpy(row[:length].astype("int64"))
        with torch.inference_mode():
            output = model(input_ids=tokens[None], use_cache=True, **{cache_argument(model): cache})
        logits.append(output.logits[0])
        first.append(cache.layers[0].keys[0])
        last.append(cache.layers[-1].keys[0])
    return collected(asked.ids, asked.lengths, logits, first, last)


def outputs_by_blocks(asked: CompressedProbe, artifact: Artifact, checkpoint: Checkpoint) -> CompressedProbe:
    """Return an artifact's outputs on the parity sequences of an existing probe, with one block in memory.

    Args:
        asked: The probe with the token ids.
        artifact: The compressed model.
        checkpoint: The original.
    """
    stream = BlockStream(Stored(artifact, checkpoint))
    probe = ParityProbe(stream, asked.ids, asked.lengths)
    for index in range(stream.num_layers):
        with stream.block(index) as block:
            install(block, artifact)
            probe.advance(block, stream.num_layers)
    return probe.result(stream)
