"""Runs a graph on stored tokens (prefill, then decoding with a cache) and compares its outputs with stored ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curconvert_runtime.checks.report import Check, at_most
from curconvert_runtime.format.probes import DECODE_STEPS, CompressedProbe
from curconvert_runtime.serve.runner import KeyValueCache

MAX_PARITY = 1e-4
"""Largest accepted |Δlogit| relative to the reference's largest logit, and |Δkey| to its largest key. Graphs and torch
both compute in float32 with the same stored weights, whatever the weights' dtype."""

MAX_PARITY_FLOAT16 = 0.02
"""The limit for a graph that computes in float16: it has 11 binary digits, and the errors of all layers add up."""


@dataclass(frozen=True)
class Outputs:
    """A model's outputs on B sequences, aligned to the first token. Values past a row's length mean nothing.

    Attributes:
        logits: float32 (B, T, vocabulary or a sample of it).
        first_key, last_key: First and last layer's keys after rotary embedding, (B, heads, T, head_dim).
    """

    logits: NDArray[np.float32]
    first_key: NDArray[np.float32]
    last_key: NDArray[np.float32]


def session_keys(cache: KeyValueCache) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the first and the last layer's keys, (batch, heads, columns, head_dim)."""
    return np.asarray(cache.values[0].numpy()), np.asarray(cache.values[-2].numpy())


def teacher_forced(
    model: Any,
    ids: NDArray[np.integer],
    lengths: NDArray[np.integer],
    padding: str,
    keys: Callable[[Any], tuple[NDArray[Any], NDArray[Any]]] = session_keys,
) -> Outputs:
    """Return a model's outputs: prefill all but the last 16 tokens of each row, then feed those 16 one by one.

    Args:
        model: A session, or another model with `allocate_cache` and `forward`.
        ids: Right-padded token ids, (B, T).
        lengths: Tokens per row, each more than 16.
        padding: Side on which the model expects the padding of unequal prompts: `left` or `right`.
        keys: Reads the first and the last layer's keys from the model's cache.
    """
    rows, width = np.arange(len(lengths)), int(max(lengths))
    prompts = lengths.astype(np.int64) - DECODE_STEPS
    prefill = width - DECODE_STEPS
    starts = prefill - prompts if padding == "left" else np.zeros_like(prompts)
    columns = np.arange(width)

    def mask(real: NDArray[np.int64], total: int) -> NDArray[np.int64]:
        """Return ones at the first `real` tokens of each row; right padding is after the decoded tokens."""
        inside = (columns >= starts[:, None]) & (columns < (starts + real)[:, None])
        return inside[:, :total].astype(np.int64)

    source = np.clip(columns[:prefill] - starts[:, None], 0, None)
    batch = np.take_along_axis(ids.astype(np.int64), source, axis=1) * mask(prompts, prefill)
    answer, past = model.forward(batch, mask(prompts, prefill), past=model.allocate_cache(len(rows), width))
    logits = np.zeros((len(rows), width, answer.shape[-1]), dtype=np.float32)
    for row, (start, prompt) in enumerate(zip(starts, prompts, strict=True)):
        logits[row, :prompt] = answer[row, start : start + prompt]
    for step in range(DECODE_STEPS):
        now = prompts + step
        token = ids[rows, now].astype(np.int64)[:, None]
        answer, past = model.forward(token, mask(now + 1, prefill + step + 1), past=past)
        logits[rows, now] = answer[:, -1]
    first, last = (_aligned(key, starts, lengths) for key in keys(past))
    return Outputs(logits, first, last)


def _aligned(key: NDArray[Any], starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> NDArray[np.float32]:
    out = np.zeros((*key.shape[:2], int(max(lengths)), key.shape[3]), dtype=np.float32)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        out[row, :, :length] = key[row, :, start : start + length]
    return out


def real_positions(lengths: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return (B, T): True at the positions that hold a token of the row."""
    return np.arange(max(lengths))[None, :] < lengths[:, None]


def largest_difference(a: NDArray[np.floating], b: NDArray[np.floating], real: NDArray[np.bool_]) -> float:
    """Return max |a − b| over real tokens (arrays are (B, T, …)); NaN if either side holds a NaN or an infinity."""
    worst = 0.0
    for row, mask in enumerate(real):
        left, right = a[row, : len(mask)][mask], b[row, : len(mask)][mask]
        if not (np.isfinite(left).all() and np.isfinite(right).all()):
            return float("nan")
        worst = max(worst, float(np.max(np.abs(left.astype(np.float64) - right), initial=0.0)))
    return worst


def relative_difference(found: NDArray[Any], reference: NDArray[Any], real: NDArray[np.bool_]) -> float:
    """Return the largest difference over real tokens, relative to the largest absolute value of the reference."""
    scale = largest_difference(reference, np.zeros_like(reference), real)
    return largest_difference(found, reference, real) / (scale or 1.0)


def compare_with_probe(name: str, answers: Outputs, probe: CompressedProbe, limit: float) -> list[Check]:
    """Return checks of a graph's outputs against the stored ones of the torch model; see `compare`."""
    wanted = Outputs(probe.logits, probe.first_key, probe.last_key)
    sample = Outputs(answers.logits[..., probe.vocabulary], answers.first_key, answers.last_key)
    against = "the torch model of the conversion"
    return compare(name, sample, wanted, lengths=probe.lengths, limit=limit, against=against)


def compare(
    name: str,
    answers: Outputs,
    reference: Outputs,
    *,
    lengths: NDArray[np.integer],
    limit: float,
    against: str,
) -> list[Check]:
    """Return checks of two models' logits and keys on the same tokens. Different shapes fail.

    Check names begin with `name`, such as `parity.fused`. Details name the reference by `against`.
    """
    real, checks = real_positions(lengths), []
    for part in ("logits", "first_key", "last_key"):
        found, expected = getattr(answers, part), getattr(reference, part)
        if found.shape != expected.shape:
            detail = f"shape {found.shape}, {against} has {expected.shape}"
            checks.append(Check(f"{name}.{part}", False, detail))
            continue
        if part != "logits":
            found, expected = np.swapaxes(found, 1, 2), np.swapaxes(expected, 1, 2)
        symbol = "logit" if part == "logits" else "key"
        what = f"max |Δ{symbol}| / max |{symbol}| to {against}"
        checks.append(at_most(f"{name}.{part}", relative_difference(found, expected, real), limit, what))
    return checks


def limit_of(arithmetic: str, limit: float) -> float:
    """Return the limit for a graph: a larger one if it computes in float16."""
    return max(limit, MAX_PARITY_FLOAT16) if arithmetic == "float16" else limit
