"""Calibration text that the model writes itself.

A calibration text of one kind covers only a part of what the model knows, and compression discards the rest. Text that
the model samples covers more of its knowledge. The first token of each sequence, after the begin token, comes from the
given text, and the model samples the others (LLM-QAT, arXiv 2305.17888; self-calibration, arXiv 2410.17170).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import DynamicCache

from curconvert.base.types import Ids
from curconvert.blocks.cache import cache_argument
from curconvert.calibration.text import CalibrationTokens, digest
from curconvert.checkpoint.types import Checkpoint
from curconvert.families.skeleton import EMBEDDING, HEAD, build_skeleton, canonical_parameters, set_tensor
from curconvert_runtime.checks.fidelity import Progress

RESIDENT_BYTES = 4e9
"""Limit on a model's size in float32 for sampling: every token needs all weights in memory."""


def with_self_text(
    checkpoint: Checkpoint,
    tokens: CalibrationTokens,
    share: float,
    seed: int,
    progress: Progress,
) -> CalibrationTokens:
    """Let the model write a share of the calibration and of the probe sequences, all but their first tokens.

    A begin token is not counted as the first.

    Args:
        checkpoint: The model. If it exceeds `RESIDENT_BYTES`, the text stays unchanged and gets a notice.
        tokens: The given text.
        share: 0 to 1; the sequences are spread evenly.
        seed: Seed of the sampling.
        progress: Called after each token.
    """
    size = 4 * sum(math.prod(info.shape) for info in checkpoint.tensors.values())
    if share == 0:
        return tokens
    if size > RESIDENT_BYTES:
        notice = (
            f"calibrated only on the given text: to write text, the model needs {size / 1e9:.1f} GB in float32, and "
            f"the limit is {RESIDENT_BYTES / 1e9:.0f} GB"
        )
        return replace(tokens, notices=(*tokens.notices, notice))
    calibration, probes = tokens.calibration.copy(), tokens.probes.copy()
    chosen = [_spread(len(rows), share) for rows in (calibration, probes)]
    given = 1 if tokens.begin is None else 2
    start = np.concatenate([rows[index, :given] for rows, index in zip((calibration, probes), chosen, strict=True)])
    written = sample(checkpoint, start, calibration.shape[1], seed, progress)
    calibration[chosen[0]], probes[chosen[1]] = np.split(written, [len(chosen[0])])
    return replace(tokens, calibration=calibration, probes=probes, sha256=digest(calibration, probes))


def sample(checkpoint: Checkpoint, start: Ids, length: int, seed: int, progress: Progress) -> Ids:
    """Sample sequences from the model at temperature 1.

    Args:
        checkpoint: The model; it is in memory in float32 while this runs.
        start: The first tokens of each sequence, (sequences, given tokens).
        length: Tokens of a sequence, the given ones included.
        seed: Seed of the sampling.
        progress: Called after each token.

    Returns:
        (sequences, length).
    """
    model = resident_model(checkpoint)
    generator = torch.Generator().manual_seed(seed)
    cache, cache_name = DynamicCache(), cache_argument(model)
    ids = torch.from_numpy(start.astype(np.int64))
    with torch.inference_mode():
        for done in range(start.shape[1], length):
            fresh = ids[:, cache.get_seq_length() :]
            logits = model(input_ids=fresh, use_cache=True, **{cache_name: cache}).logits[:, -1]
            ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1, generator=generator)], dim=1)
            progress("sample", done, length - 1)
    return np.asarray(ids.numpy())


def resident_model(checkpoint: Checkpoint) -> nn.Module:
    """Build transformers' model of a checkpoint with all its weights, in float32."""
    model = build_skeleton(checkpoint.config)
    for name, owner, attribute in list(canonical_parameters(model)):
        if name != HEAD or HEAD in checkpoint.tensors:
            set_tensor(owner, attribute, checkpoint.read(name).to(torch.float32))
    if HEAD not in checkpoint.tensors:
        set_tensor(model.get_submodule("lm_head"), "weight", model.get_parameter(EMBEDDING))
    return model


def _spread(count: int, share: float) -> NDArray[np.intp]:
    """Return the indices of the sequences to sample, evenly spread."""
    steps = np.floor(share * np.arange(count + 1) + 1e-9)
    return np.flatnonzero(np.diff(steps))
