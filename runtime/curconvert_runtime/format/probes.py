"""Reads `probes.safetensors`: stored outputs of the original and the compressed torch model, for `verify`.

docs/artifact.md, "Probes", lists every tensor. Keys are stored too, because attention only sees position differences:
if all positions are off by one, only the keys show it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curconvert_runtime.errors import InputError, unsound
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.files import PROBES
from curconvert_runtime.format.tensor_file import read_headers, read_tensor

DECODE_STEPS = 16
"""Number of last tokens of each parity sequence that are decoded one by one."""


@dataclass(frozen=True)
class CompressedProbe:
    """The compressed torch model's outputs on right-padded sequences: logits of some ids, first and last keys."""

    ids: NDArray[np.int32]
    lengths: NDArray[np.int32]
    vocabulary: NDArray[np.int32]
    logits: NDArray[np.float32]
    first_key: NDArray[np.float32]
    last_key: NDArray[np.float32]


@dataclass(frozen=True)
class OriginalProbe:
    """The original model's log-probabilities on equally long sequences: top tokens, sum of the others, next token."""

    ids: NDArray[np.int32]
    top_ids: NDArray[np.int32]
    top_log_probs: NDArray[np.float32]
    rest_log_prob: NDArray[np.float32]
    next_log_prob: NDArray[np.float32]


# B or S sequences of T tokens, N = T − 1, K tokens of the vocabulary, H key heads of D numbers.
_AXES: dict[type, dict[str, str]] = {
    OriginalProbe: {
        "ids": "ST", "top_ids": "STK", "top_log_probs": "STK", "rest_log_prob": "ST", "next_log_prob": "SN",
    },
    CompressedProbe: {
        "ids": "BT", "lengths": "B", "vocabulary": "K", "logits": "BTK", "first_key": "BHTD", "last_key": "BHTD",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Probes:
    """Both groups of the probe file."""

    original: OriginalProbe
    compressed: CompressedProbe

    @classmethod
    def load(cls, artifact: Artifact) -> Probes:
        """Read and check the probe file of an artifact."""
        if not artifact.has(PROBES) and not artifact.manifest["matrices"]:
            raise InputError(f"{artifact.path}: an exported, uncompressed model; verify the artifact made from it")
        path = artifact.file(PROBES)
        stored = read_headers(path)
        kinds: dict[str, type] = {"original": OriginalProbe, "compressed": CompressedProbe}
        wanted = {kind: {name: f"{prefix}.{name}" for name in _AXES[kind]} for prefix, kind in kinds.items()}
        expected = {name for names in wanted.values() for name in names.values()}
        if set(stored) != expected:
            raise unsound(path, f"tensors {sorted(stored)}, expected {sorted(expected)}")
        parts = [kind(**{n: read_tensor(stored[name]) for n, name in names.items()}) for kind, names in wanted.items()]
        for part in parts:
            if problem := probe_fault(part) or _outside(part, artifact.model["vocab_size"]):
                raise unsound(path, problem)
        return cls(*parts)


def _outside(part: OriginalProbe | CompressedProbe, vocab_size: int) -> str | None:
    """Return a message if token ids are outside the vocabulary, otherwise None."""
    for name in ("ids", "top_ids", "vocabulary"):
        ids = getattr(part, name, None)
        if ids is not None and (ids.min() < 0 or ids.max() >= vocab_size):
            return f"{name} holds token ids outside the vocabulary of {vocab_size}"
    return None


def probe_fault(part: OriginalProbe | CompressedProbe) -> str | None:
    """Return a message if dtypes or shapes of a group are wrong, otherwise None."""
    sizes: dict[str, int] = {}
    for name, letters in _AXES[type(part)].items():
        array = getattr(part, name)
        kind = np.int32 if name.endswith("ids") or name in ("lengths", "vocabulary") else np.float32
        if array.dtype != kind or array.ndim != len(letters):
            return f"{name} is {array.dtype} of shape {array.shape}, expected {np.dtype(kind)} with {len(letters)} axes"
        for letter, size in zip(letters, array.shape, strict=True):
            # First and last layer may differ in H and D (Gemma's global layers), so only the other axes must agree.
            if letter not in "HD" and sizes.setdefault(letter, size) != size:
                return f"{name} has shape {array.shape}, but axis {letter} is {sizes[letter]} in the tensors before it"
    if 0 in sizes.values():
        return f"an axis is empty ({sizes})"
    if isinstance(part, OriginalProbe) and sizes["N"] != sizes["T"] - 1:
        return f"next_log_prob covers {sizes['N']} positions of sequences of {sizes['T']} tokens"
    if isinstance(part, CompressedProbe) and not ((part.lengths > DECODE_STEPS) & (part.lengths <= sizes["T"])).all():
        return f"lengths {part.lengths.tolist()} must be in {DECODE_STEPS + 1}…{sizes['T']}"
    return None
