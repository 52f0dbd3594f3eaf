"""Which decoder layers to compress."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from curconvert.errors import InputError

_SPEC = "angular, angular:N, all, or a list of numbers and ranges such as 3,5,8-12"
PAPER_SHARE = 10 / 32  # CURing compresses 10 of Llama-3.1-8B's 32 layers


def angular_distance(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Angular distance that a layer moves the last token's hidden state (CURing, arXiv 2501.04211, §3.1).

    `d = arccos(cos(h_l, h_{l+1})) / π`, averaged over sequences; it belongs to layer l+1.

    Args:
        before: (sequences, hidden_size): the last token's state after the layer before.
        after: The same after the layer itself.

    Returns:
        The mean distance, in [0, 1].
    """
    norms = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    cosine = (before * after).sum(-1) / np.maximum(norms, 1e-300)
    return float((np.arccos(np.clip(cosine, -1.0, 1.0)) / np.pi).mean())


def needs_distances(spec: str) -> bool:
    """Tell whether a layer choice depends on hidden states."""
    return spec.split(":", maxsplit=1)[0] == "angular"


def layer_count(spec: str, num_layers: int) -> int:
    """Number of layers that a specification selects, known before any hidden state is."""
    if not needs_distances(spec):
        return len(select_layers(spec, num_layers))
    candidates = max(num_layers - 2, 0)
    if spec == "angular":
        return min(round(PAPER_SHARE * num_layers), candidates)
    match = re.fullmatch(r"angular:(\d{1,9})", spec)
    if match is None:
        raise InputError(f"--layers {spec!r}: expected {_SPEC}")
    count = int(match[1])
    if not 1 <= count <= candidates:
        raise InputError(
            f"--layers {spec}: the model has {num_layers} layers, of which the first and the last are never "
            f"candidates; ask for 1 to {candidates}, or use --layers all"
        )
    return count


def select_layers(spec: str, num_layers: int, distances: NDArray[np.float64] | None = None) -> tuple[int, ...]:
    """Return the layers to compress, ascending.

    Args:
        spec: `angular` (10/32 of the layers, as in CURing), `angular:N`, `all`, or explicit numbers and ranges.
        num_layers: Number of decoder layers.
        distances: (layers,), by `angular_distance`; needed for the angular choices, the first and last are not read.

    Raises:
        InputError: The specification is malformed or matches no layer.
    """
    if needs_distances(spec):
        count = layer_count(spec, num_layers)
        assert distances is not None
        inner = np.arange(1, num_layers - 1)
        return tuple(sorted(int(i) for i in inner[np.argsort(distances[inner], kind="stable")[:count]]))
    if spec == "all":
        return tuple(range(num_layers))
    layers: set[int] = set()
    for part in spec.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        if match is None:
            raise InputError(f"--layers {spec!r}: {part.strip()!r} is not understood; expected {_SPEC}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= num_layers:
            raise InputError(f"--layers {part.strip()}: the model's layers are 0 to {num_layers - 1}")
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))
