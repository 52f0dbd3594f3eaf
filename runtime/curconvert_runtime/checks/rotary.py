"""Checks, without running a model, that `config.json` describes the rotary embedding that the model ran with.

The first layer's keys depend only on token and position. So if a token occurs twice in the stored parity sequences,
its two keys differ only by the rotation between the two positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curconvert_runtime.checks.report import Check, at_most
from curconvert_runtime.format.probes import CompressedProbe

LIMIT = 1e-3
"""Largest difference, relative to the largest key. Keys are computed in float32."""


def rotary_check(config: Mapping[str, Any], probe: CompressedProbe) -> Check | None:
    """Check the config's rotary frequencies against the stored keys.

    Return None if the first layer has no rotary embedding, if its frequencies depend on the sequence length, or if no
    token occurs twice.
    """
    keys = probe.first_key.astype(np.float64)
    try:
        frequencies = _frequencies(config, keys.shape[-1])
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        return Check("structure.rotary", False, f"config.json: rope_parameters are malformed ({error!r})")
    pairs = _repeated_tokens(probe)
    if frequencies is None or len(pairs) == 0:
        return None
    half = len(frequencies)
    rotated = keys[..., :half] + 1j * keys[..., half : 2 * half]
    row, position, other_row, other_position = pairs.T
    turn = np.exp(1j * (other_position - position)[:, None, None] * frequencies)
    difference = rotated[row, :, position] * turn - rotated[other_row, :, other_position]
    scale = float(np.max(np.abs(keys))) or 1.0
    detail = f"max |Δkey| / max |key| between {len(pairs)} repeated tokens and config.json's rotation"
    return at_most("structure.rotary", float(np.max(np.abs(difference))) / scale, LIMIT, detail)


def _repeated_tokens(probe: CompressedProbe) -> NDArray[np.int64]:
    """Return (row, position, other row, other position): each token's first occurrence paired with each later one."""
    first: dict[int, tuple[int, int]] = {}
    pairs = []
    for row, length in enumerate(probe.lengths):
        for position, token in enumerate(probe.ids[row, :length].tolist()):
            known = first.setdefault(token, (row, position))
            if known[1] != position:
                pairs.append((*known, row, position))
    return np.asarray(pairs, dtype=np.int64).reshape(-1, 4)


def _frequencies(config: Mapping[str, Any], head_dim: int) -> NDArray[np.float64] | None:
    """Return the first layer's angles per position, (rotary_dim / 2,); None if they are unknown or depend on length."""
    parameters = config.get("rope_parameters")
    layer_types = config.get("layer_types") or [None]
    if isinstance(parameters, dict) and layer_types[0] in parameters:  # one set per kind of layer (Gemma 3)
        parameters = parameters[layer_types[0]]
    no_rope = config.get("no_rope_layers") or [1]  # zero marks a layer without positions (SmolLM3)
    if not isinstance(parameters, dict) or "rope_theta" not in parameters or not no_rope[0]:
        return None
    size = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    base = float(parameters["rope_theta"])
    if not 0 < base < math.inf:
        raise ValueError(f"rope_theta is {base}")
    frequencies: NDArray[np.float64] = base ** (-np.arange(0, size, 2) / size)
    kind = parameters.get("rope_type", "default")
    if kind == "linear":
        return frequencies / float(parameters["factor"])
    if kind == "llama3":
        return _llama3(frequencies, parameters)
    return frequencies if kind == "default" else None


def _llama3(frequencies: NDArray[np.float64], parameters: Mapping[str, Any]) -> NDArray[np.float64]:
    """Apply Llama 3.1's scaling: divide slow rotations by the factor, keep fast ones, blend those between."""
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    turns = float(parameters["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return kept * frequencies + (1.0 - kept) * frequencies / float(parameters["factor"])
