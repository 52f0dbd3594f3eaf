"""`probes.safetensors`: what the original and the compressed torch model answered, kept for a torch-free `verify`.

Two groups of tensors:

* `original.*`: the original model on fidelity sequences of equal length (S × T). Per position the K most likely
  tokens with their log-probabilities and the log of all other probability, and the log-probability of the next token.
* `compressed.*`: the compressed torch model on three right-padded sequences of unequal length. Logits at a fixed
  sample of the vocabulary, and the keys of the first and the last layer after rotary embedding: attention
  only sees differences of positions, so positions off by one show in the keys and nowhere else.

The functions that fill the file are here as well, so that its writer and its reader cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curconvert_runtime.checks.metrics import bucket_log_probs, log_softmax
from curconvert_runtime.errors import InputError, IntegrityError
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.tensor_file import read_headers, read_tensor

PROBES = "probes.safetensors"
TOP_TOKENS = 256
VOCABULARY_SAMPLE = 512
DECODE_STEPS = 16
PARITY_LENGTHS = (48, 33, 20)
"""Tokens per parity sequence, the 16 decoded ones included; unequal, so that a batch of them needs padding."""
_LOG_ZERO = -1e4
"""Stands for the logarithm of a probability of zero: files of an artifact hold finite numbers only."""


@dataclass(frozen=True)
class OriginalOutputs:
    """The original model at N positions.

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
    """Reduce the original model's logits to what the probe file keeps.

    Args:
        logits: (N, vocabulary). They are widened to float64: pass a few dozen positions at a time.
        next_ids: The token that follows each position, (N,); any valid id after a sequence's last token.
        top: How many tokens to keep, at most the vocabulary.
    """
    log_probs = log_softmax(logits)
    count = min(top, log_probs.shape[-1])
    candidates = np.argpartition(-log_probs, count - 1, axis=-1)[:, :count]
    # Equal logits are ordered by id, as argmax does: otherwise top-1 agreement would depend on the partition.
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
        ids: Fidelity sequences, (S, T), S ≥ 1. Fewer rows than lengths are used again from another start.
        lengths: Tokens per parity sequence; shortened to T where T is smaller.

    Returns:
        Right-padded ids (len(lengths), longest) and the lengths.

    Raises:
        InputError: The sequences are too short to prefill one token and decode 16.
    """
    sequences, width = ids.shape
    kept = [min(length, width - row // sequences) for row, length in enumerate(lengths)]
    if sequences == 0 or min(kept) <= DECODE_STEPS:
        raise InputError(f"probes: sequences of {width} tokens are too short; parity needs {DECODE_STEPS + 3} or more")
    batch = np.zeros((len(kept), max(kept)), dtype=np.int32)
    for row, length in enumerate(kept):
        start = row // sequences
        batch[row, :length] = ids[row % sequences, start : start + length]
    return batch, np.asarray(kept, dtype=np.int32)


@dataclass(frozen=True)
class CompressedProbe:
    """The compressed torch model on B right-padded sequences; positions past a row's length are not compared.

    Attributes:
        ids: Token ids, int32 (B, T).
        lengths: Tokens per row, int32 (B,); more than 16 each.
        vocabulary: The ids whose logits are stored, int32 (K,).
        logits: float32 (B, T, K).
        first_key: First layer's keys after rotary embedding, float32 (B, key/value heads, T, head_dim).
        last_key: Last layer's, same layout.
    """

    ids: NDArray[np.int32]
    lengths: NDArray[np.int32]
    vocabulary: NDArray[np.int32]
    logits: NDArray[np.float32]
    first_key: NDArray[np.float32]
    last_key: NDArray[np.float32]


@dataclass(frozen=True)
class OriginalProbe:
    """The original model on S sequences of T tokens; see `OriginalOutputs` (next_log_prob has T − 1 columns)."""

    ids: NDArray[np.int32]
    top_ids: NDArray[np.int32]
    top_log_probs: NDArray[np.float32]
    rest_log_prob: NDArray[np.float32]
    next_log_prob: NDArray[np.float32]


def pack_probes(
    ids: NDArray[np.integer], original: Sequence[OriginalOutputs], compressed: CompressedProbe
) -> dict[str, NDArray[Any]]:
    """Return the tensors of `probes.safetensors`, C-contiguous, by name.

    Args:
        ids: Fidelity sequences, (S, T).
        original: Chunks that together cover all S·T positions, in order.
        compressed: The compressed model's side.

    Raises:
        InputError: The chunks do not cover the sequences, or a shape does not fit.
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
        problem = _problem(part)
        if problem:
            raise InputError(f"probes: {problem}")
    return Probes(probe, compressed).tensors()


@dataclass(frozen=True)
class Probes:
    """The whole file."""

    original: OriginalProbe
    compressed: CompressedProbe

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the file's tensors, C-contiguous copies, by name."""
        return {
            f"{prefix}.{field.name}": np.array(getattr(part, field.name), order="C")
            for prefix, part in (("original", self.original), ("compressed", self.compressed))
            for field in fields(part)
        }

    @classmethod
    def load(cls, artifact: Artifact) -> Probes:
        """Read and check the probe file of an artifact.

        Raises:
            InputError: The folder is an export: an uncompressed model has no answers to compare with.
            IntegrityError: A tensor is missing, unexpected, or of the wrong type or shape.
        """
        if not artifact.has(PROBES) and not artifact.manifest["matrices"]:
            raise InputError(f"{artifact.path}: an exported, uncompressed model; verify the artifact made from it")
        path = artifact.file(PROBES)
        stored = read_headers(path)
        wanted = {f"original.{f.name}" for f in fields(OriginalProbe)}
        wanted |= {f"compressed.{f.name}" for f in fields(CompressedProbe)}
        if set(stored) != wanted:
            raise IntegrityError(
                f"{path}: tensors {sorted(stored)}, expected {sorted(wanted)}; convert the model again"
            )

        def arrays(prefix: str, kind: type) -> dict[str, Any]:
            return {f.name: read_tensor(stored[f"{prefix}.{f.name}"]) for f in fields(kind)}

        probes = cls(
            OriginalProbe(**arrays("original", OriginalProbe)),
            CompressedProbe(**arrays("compressed", CompressedProbe)),
        )
        for part in (probes.original, probes.compressed):
            problem = _problem(part) or _outside(part, artifact.model["vocab_size"])
            if problem:
                raise IntegrityError(f"{path}: {problem}; convert the model again")
        return probes


def _outside(part: OriginalProbe | CompressedProbe, vocab_size: int) -> str | None:
    """Return which token ids lie outside the vocabulary, or None."""
    for name in ("ids", "top_ids", "vocabulary"):
        ids = getattr(part, name, None)
        if ids is not None and (ids.min() < 0 or ids.max() >= vocab_size):
            return f"{name} holds token ids outside the vocabulary of {vocab_size}"
    return None


def _problem(part: OriginalProbe | CompressedProbe) -> str | None:
    """Return what is wrong with a group's types and shapes, or None."""
    if isinstance(part, OriginalProbe):
        axes = {
            "ids": "ST", "top_ids": "STK", "top_log_probs": "STK", "rest_log_prob": "ST", "next_log_prob": "SN",
        }  # fmt: skip
    else:
        axes = {
            "ids": "BT", "lengths": "B", "vocabulary": "K", "logits": "BTK", "first_key": "BHTD", "last_key": "BHTD",
        }  # fmt: skip
    sizes: dict[str, int] = {}
    for name, letters in axes.items():
        array = getattr(part, name)
        kind = np.int32 if name.endswith("ids") or name in ("lengths", "vocabulary") else np.float32
        if array.dtype != kind or array.ndim != len(letters):
            return f"{name} is {array.dtype} of shape {array.shape}, expected {np.dtype(kind)} with {len(letters)} axes"
        for letter, size in zip(letters, array.shape, strict=True):
            # The last layer may have other heads than the first (Gemma's global layers): only B, S, T, K, N are shared.
            if letter not in "HD" and sizes.setdefault(letter, size) != size:
                return f"{name} has shape {array.shape}, but axis {letter} is {sizes[letter]} in the tensors before it"
    if 0 in sizes.values():
        return f"an axis is empty ({sizes})"
    if isinstance(part, OriginalProbe) and sizes["N"] != sizes["T"] - 1:
        return f"next_log_prob covers {sizes['N']} positions of sequences of {sizes['T']} tokens"
    if isinstance(part, CompressedProbe) and not ((part.lengths > DECODE_STEPS) & (part.lengths <= sizes["T"])).all():
        return f"lengths {part.lengths.tolist()} must lie in {DECODE_STEPS + 1}…{sizes['T']}"
    return None
