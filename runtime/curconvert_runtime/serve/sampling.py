"""Chooses the next token from logits, in float64. Settings have the meaning, order and defaults of transformers."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curconvert_runtime.errors import InputError, VerificationError, check_integer
from curconvert_runtime.format import strict_json
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.files import GENERATION_CONFIG

_SMALLEST, _LARGEST = 5e-324, sys.float_info.max


@dataclass(frozen=True)
class Sampling:
    """How to choose a token. The fields are those of `GenerationOptions`; the defaults are plain greedy decoding."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        check_integer("top_k", self.top_k, 0)
        for name, least, most, expected in (
            ("temperature", 0.0, _LARGEST, "a finite number of at least 0"),
            ("top_p", _SMALLEST, 1.0, "a number above 0 and at most 1"),
            ("min_p", 0.0, 1.0, "a number from 0 to 1"),
            ("repetition_penalty", _SMALLEST, _LARGEST, "a finite number above 0"),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                raise InputError(f"{name} {value!r:.60}: expected {expected}")

    @classmethod
    def of(cls, given: Mapping[str, Any], settings: Mapping[str, Any]) -> Sampling:
        """Return the settings of a request: those given, then those of `generation_config.json`; None is not given."""
        sampled = settings.get("do_sample")
        usual: dict[str, Any] = {"temperature": 1.0, "top_k": 50} if sampled else {}
        layers = (given, settings if sampled else {**settings, "temperature": None}, usual)
        found = {f.name: [layer[f.name] for layer in layers if layer.get(f.name) is not None] for f in fields(cls)}
        return cls(**{name: values[0] for name, values in found.items() if values})


def generation_settings(artifact: Artifact) -> Mapping[str, Any]:
    """Return the artifact's `generation_config.json`, or nothing if it has none."""
    return strict_json.read(artifact.file(GENERATION_CONFIG)) if artifact.has(GENERATION_CONFIG) else {}


def choose(logits: NDArray[np.float32], sampling: Sampling, seen: Sequence[int], generator: np.random.Generator) -> int:
    """Return one token id. Of equal logits, the lower id comes first. The penalty applies to the ids in `seen`.

    Raises:
        VerificationError: The logits hold a NaN or an infinity: the model is broken.
    """
    if not np.isfinite(logits).all():
        raise VerificationError("the model's logits are not finite; run curconvert verify on this artifact")
    if sampling.repetition_penalty != 1:
        logits, values, penalty = logits.copy(), logits[list(seen)], sampling.repetition_penalty
        logits[list(seen)] = np.where(values < 0, values * penalty, values / penalty)
    if sampling.temperature == 0:
        return int(logits.argmax())
    order, probabilities = likely(logits, sampling)
    cumulative = probabilities.cumsum()
    drawn = generator.random() * cumulative[-1]
    return int(order[min(int(np.searchsorted(cumulative, drawn, side="right")), len(order) - 1)])


def likely(logits: NDArray[np.float32], sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the ids to draw from, most likely first, and their probabilities up to a common factor."""
    # A stable descending order puts the lower id first among equal logits, on every machine.
    order = np.argsort(-logits, kind="stable")
    if 0 < sampling.top_k < len(order):  # ids whose logit equals the last one's stay, as in transformers
        order = order[: np.searchsorted(-logits[order], -logits[order[sampling.top_k - 1]], side="right")]
    scaled = logits[order].astype(np.float64) / sampling.temperature
    probabilities = np.exp(scaled - scaled[0])
    probabilities /= probabilities.sum()
    kept = int((probabilities >= sampling.min_p * probabilities[0]).sum())
    if sampling.top_p < 1:
        kept = min(int(np.searchsorted(probabilities.cumsum(), sampling.top_p)) + 1, kept)
    return order[:kept], probabilities[:kept]
