"""Chooses the next token from logits, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from curconvert_runtime.errors import VerificationError


def choose(
    logits: NDArray[np.float32], temperature: float, top_k: int, top_p: float, generator: np.random.Generator
) -> int:
    """Return one token id. The settings are those of `GenerationOptions`. Of equal logits, the lower id comes first.

    Raises:
        VerificationError: The logits hold a NaN or an infinity: the model is broken.
    """
    if not np.isfinite(logits).all():
        raise VerificationError("the model's logits are not finite; run curconvert verify on this artifact")
    if temperature == 0:
        return int(logits.argmax())
    # A stable descending order puts the lower id first among equal logits, on every machine.
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    scaled = logits[order].astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled[0])
    probabilities /= probabilities.sum()
    cumulative = probabilities.cumsum()
    kept = min(int(np.searchsorted(cumulative, top_p)) + 1, len(order)) if top_p < 1 else len(order)
    drawn = generator.random() * cumulative[kept - 1]
    return int(order[min(int(np.searchsorted(cumulative[:kept], drawn, side="right")), kept - 1)])
