"""Builds the content of `probes.safetensors`: the probe sequences and a summary of both models' outputs on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curconvert_runtime.checks.metrics import bucket_log_probs, log_softmax
from curconvert_runtime.errors import InputError
from curconvert_runtime.format.probes import DECODE_STEPS, CompressedProbe, OriginalProbe, probe_fault

TOP_TOKENS = 256
VOCABULARY_SAMPLE = 512
PARITY_LENGTHS = (48, 33, 20)
"""Tokens per parity sequence, the 16 decoded ones included; unequal, so that a batch of them needs padding."""
_LOG_ZERO = -1e4
"""Replaces the logarithm of a probability of zero: files of an artifact hold finite numbers only."""


@dataclass(frozen=True)
class OriginalOutputs:
    """Holds a summary of the original model's output distribution at N positions.

    Attributes:
        top_ids: Most likely tokens, most likely first, int32 (N, K).
        top_log_probs: Their log-probabilities, float32 (N, K).
        rest_log_prob: Log of the summed probability of all other tokens, float32 (N,).
        next_log_prob: Log-probability of the token that follows, float32 (N,).
    """

    top_ids: NDArray[np.int32]
    top_log_probs: NDArray[np.float32]
    rest_log_prob: NDArray[np.float32]
    next_log_prob: NDArray[np.float32]


def fidelity_probe(
    logits: NDArray[np.floating], next_ids: NDArray[np.integer], top: int = TOP_TOKENS
) -> OriginalOutputs:
    """Reduce the original model's logits to the numbers that the probe file stores.

    Args:
        logits: (N, vocabulary). They are converted to float64: pass a few dozen positions at a time.
        next_ids: The token that follows each position, (N,); any valid id after a sequence's last token.
        top: How many tokens to keep, at most the vocabulary.
    """
    log_probs = log_softmax(logits)
    count = min(top, log_probs.shape[-1])
    candidates = np.argpartition(-log_probs, count - 1, axis=-1)[:, :count]
    # Order equal logits by id, as argmax does: otherwise top-1 agreement would depend on the partition.
    order = np.lexsort((candidates, -np.take_along_axis(log_probs, candidates, axis=-1)), axis=-1)
    top_ids = np.take_along_axis(candidates, order, axis=-1).astype(np.int32)
    picked, rest = bucket_log_probs(log_probs, top_ids)
    following = np.take_along_axis(log_probs, next_ids.astype(np.int64)[:, None], axis=-1)[:, 0]
    values = [np.maximum(part, _LOG_ZERO).astype(np.float32) for part in (picked, rest, following)]
    return OriginalOutputs(top_ids, *values)


def sample_vocabulary(vocab_size: int, count: int = VOCABULARY_SAMPLE) -> NDArray[np.int32]:
    """Return the ids, ascending, at which parity logits are stored: a fixed sample, or all of a small vocabulary."""
    if vocab_size <= count:
        return np.arange(vocab_size, dtype=np.int32)
    chosen = np.random.default_rng(0).choice(vocab_size, count, replace=False)
    return np.sort(chosen).astype(np.int32)


def parity_batch(
    ids: NDArray[np.integer], lengths: Sequence[int] = PARITY_LENGTHS
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Take parity sequences from the first rows of the fidelity sequences.

    Args:
        ids: Fidelity sequences, (S, T), S ≥ 1. With fewer rows than lengths, rows are reused without
            the tokens after their first one.
        lengths: Tokens per parity sequence; shortened to T where T is smaller.

    Returns:
        Right-padded ids (len(lengths), longest) and the lengths.

    Raises:
        InputError: The sequences are too short to prefill one token and decode 16.
    """
    sequences, width = ids.shape
    kept = [min(length, width - row // sequences) for row, length in enumerate(lengths)]
    if sequences == 0 or min(kept) <= DECODE_STEPS:
        raise InputError(f"probes of {width} tokens are too short; use --calibration-tokens {DECODE_STEPS + 3} or more")
    batch = np.zeros((len(kept), max(kept)), dtype=np.int32)
    for row, length in enumerate(kept):
        batch[row, :length] = np.delete(ids[row % sequences], np.s_[1 : 1 + row // sequences])[:length]
    return batch, np.asarray(kept, dtype=np.int32)


def pack_probes(
    ids: NDArray[np.integer], original: Sequence[OriginalOutputs], compressed: CompressedProbe
) -> dict[str, NDArray[Any]]:
    """Return the tensors of `probes.safetensors`, C-contiguous, by name.

    Args:
        ids: Fidelity sequences, (S, T).
        original: Chunks that together cover all S·T positions, in order.
        compressed: The compressed model's outputs on the parity sequences.

    Raises:
        InputError: The chunks do not cover the sequences, or a shape is wrong.
    """
    sequences, width = ids.shape

    def joined(name: str) -> NDArray[Any]:
        flat = np.concatenate([getattr(chunk, name) for chunk in original])
        if len(flat) != sequences * width:
            raise InputError(f"probes: {len(flat)} positions of {name} for {sequences} × {width} tokens")
        return flat.reshape(sequences, width, *flat.shape[1:])

    probe = OriginalProbe(
        ids.astype(np.int32),
        joined("top_ids"),
        joined("top_log_probs"),
        joined("rest_log_prob"),
        joined("next_log_prob")[:, :-1],
    )
    for part in (probe, compressed):
        problem = probe_fault(part)
        if problem:
            raise InputError(f"probes: {problem}")
    return probe_tensors(probe, compressed)


def probe_tensors(original: OriginalProbe, compressed: CompressedProbe) -> dict[str, NDArray[Any]]:
    """Return the tensors of `probes.safetensors`, C-contiguous copies, by name."""
    return {
        f"{prefix}.{field.name}": np.array(getattr(part, field.name), order="C")
        for prefix, part in (("original", original), ("compressed", compressed))
        for field in fields(part)
    }
