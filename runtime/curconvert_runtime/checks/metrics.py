"""Measures how far one language model is from another, in float64: KL divergence, top-1 agreement, perplexity.

Per-token values have shape (sequences, positions), logits (..., vocabulary). Divergences are in nats. A value that is
not finite stays in the result, so that a comparison with a threshold fails.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curconvert_runtime.errors import InputError

Float = NDArray[np.float64]


def logsumexp(values: NDArray[np.floating]) -> Float:
    """Return log Σ exp over the last axis, in float64; −inf where every entry is −inf."""
    wide = np.asarray(values, dtype=np.float64)
    peak = np.max(wide, axis=-1, keepdims=True)
    shift = np.where(np.isneginf(peak), 0.0, peak)
    with np.errstate(divide="ignore", invalid="ignore"):
        total: Float = np.log(np.sum(np.exp(wide - shift), axis=-1)) + shift[..., 0]
    return total


def log_softmax(logits: NDArray[np.floating]) -> Float:
    """Return log-probabilities over the last axis, in float64."""
    wide = np.asarray(logits, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # inf − inf gives a NaN, on which later checks fail
        return wide - logsumexp(wide)[..., None]


def kl_divergence(reference: NDArray[np.floating], candidate: NDArray[np.floating]) -> Float:
    """Return KL(reference ‖ candidate), (...), from log-probabilities (..., vocabulary).

    It is +inf if the candidate gives probability 0 to a token that the reference allows. It is never below 0.
    """
    p, q = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    mass = np.exp(p)
    with np.errstate(invalid="ignore"):
        terms = np.where(mass == 0.0, 0.0, mass * (p - q))
    result: Float = np.maximum(np.sum(terms, axis=-1), 0.0)
    return result


def bucket_log_probs(log_probs: NDArray[np.floating], ids: NDArray[np.integer]) -> tuple[Float, Float]:
    """Split each distribution (..., vocabulary) into the given distinct tokens (..., K) and one bucket for all others.

    Returns:
        The tokens' log-probabilities (..., K), and the log of the summed probability of the rest (...).
    """
    rest = np.array(log_probs, dtype=np.float64)
    picked = np.take_along_axis(rest, ids.astype(np.int64), axis=-1)
    np.put_along_axis(rest, ids.astype(np.int64), -np.inf, axis=-1)
    return picked, logsumexp(rest)


def kl_lower_bound(
    reference_top: NDArray[np.floating], reference_rest: NDArray[np.floating], top: Float, rest: Float
) -> Float:
    """Return the KL divergence between two bucketed distributions, per position.

    Merging outcomes into a bucket never raises a KL divergence (data-processing inequality), so this is a
    lower bound of the divergence over the whole vocabulary. Both sides are as `bucket_log_probs` returns them.
    """
    with np.errstate(invalid="ignore"):
        reference = np.concatenate([reference_top, reference_rest[..., None]], axis=-1)
        candidate = np.concatenate([top, rest[..., None]], axis=-1)
    return kl_divergence(reference, candidate)


@dataclass(frozen=True)
class Distribution:
    """Summary of a per-token quantity.

    Attributes:
        mean: Mean over all tokens.
        standard_error: Standard error of the mean, from the spread between sequences, because tokens of one sequence
            are not independent; NaN with a single sequence.
        median, p90, p99: 50th, 90th and 99th percentile.
        max: Largest value.
    """

    mean: float
    standard_error: float
    median: float
    p90: float
    p99: float
    max: float


def standard_error(values: NDArray[np.floating]) -> float:
    """Return the standard error of the mean of (sequences, positions) values; the samples are the sequences."""
    if len(values) < 2:
        return float("nan")
    with np.errstate(invalid="ignore"):
        return float(np.std(np.mean(values, axis=1), ddof=1) / np.sqrt(len(values)))


def summarize(values: NDArray[np.floating]) -> Distribution:
    """Return mean, standard error and percentiles of (sequences, positions) values."""
    wide = np.asarray(values, dtype=np.float64)
    if wide.ndim != 2 or wide.size == 0:
        raise InputError(f"metrics: no tokens to summarize (shape {wide.shape}); give a longer text")
    with np.errstate(invalid="ignore"):
        median, p90, p99 = (float(q) for q in np.percentile(wide, [50, 90, 99]))
        mean = float(np.mean(wide))
    return Distribution(mean, standard_error(wide), median, p90, p99, float(np.max(wide)))


def perplexity(next_log_probs: NDArray[np.floating]) -> float:
    """Return the perplexity: exp of the mean negative log-probability of the next tokens; inf on overflow."""
    if next_log_probs.size == 0:
        raise InputError("metrics: no next tokens to compute a perplexity from; give a longer text")
    with np.errstate(over="ignore"):
        return float(np.exp(-np.mean(np.asarray(next_log_probs, dtype=np.float64))))


@dataclass(frozen=True)
class Fidelity:
    """How close the compressed model is to the original on one text.

    Attributes:
        exact: True if `kl` covers the whole vocabulary; False if it is the bucketed lower bound.
        sequences: Number of sequences.
        tokens: Number of positions compared.
        kl: KL(original ‖ compressed) per position.
        top1: Share of positions where both models' most likely token is the same.
        top1_standard_error: Standard error of `top1`, from the spread between sequences.
        perplexity_original, perplexity_compressed: Perplexity of each model on the text.
        perplexity_ratio: perplexity_compressed / perplexity_original.
        log_ratio_standard_error: Standard error of log(perplexity_ratio), paired by token, between sequences.
    """

    exact: bool
    sequences: int
    tokens: int
    kl: Distribution
    top1: float
    top1_standard_error: float
    perplexity_original: float
    perplexity_compressed: float
    perplexity_ratio: float
    log_ratio_standard_error: float


def fidelity(
    kl: NDArray[np.floating],
    same_top1: NDArray[np.bool_],
    original_next: NDArray[np.floating],
    compressed_next: NDArray[np.floating],
    *,
    exact: bool,
) -> Fidelity:
    """Summarize per-token comparisons of two models as one `Fidelity`.

    `kl` and `same_top1` are (sequences, positions). `original_next` and `compressed_next` are the log-probabilities of
    the next token and lack the last position. `exact` says that `kl` covers the whole vocabulary.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        loss_increase = np.asarray(original_next, np.float64) - np.asarray(compressed_next, np.float64)
        summary = summarize(kl)
        original, compressed = perplexity(original_next), perplexity(compressed_next)
        ratio = float(np.exp(np.mean(loss_increase)))
    return Fidelity(
        exact=exact,
        sequences=len(kl),
        tokens=int(kl.size),
        kl=summary,
        top1=float(np.mean(same_top1)),
        top1_standard_error=standard_error(same_top1.astype(np.float64)),
        perplexity_original=original,
        perplexity_compressed=compressed,
        perplexity_ratio=ratio,
        log_ratio_standard_error=standard_error(loss_increase),
    )
