"""Compares the compressed model with the original: with its stored outputs, or exactly by running both models."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curconvert_runtime.checks import metrics
from curconvert_runtime.errors import InputError
from curconvert_runtime.format import strict_json
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.files import TOKENIZER
from curconvert_runtime.format.forms import form_of
from curconvert_runtime.format.probes import OriginalProbe
from curconvert_runtime.serve.runner import Runner
from curconvert_runtime.serve.text import Tokenizer, windows

_BLOCK = 32  # positions widened to float64 at a time, which limits memory with large vocabularies

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


def _next_log_probs(log_probs: NDArray[np.float64], ids: NDArray[np.integer], start: int) -> NDArray[np.float64]:
    """Return the log-probability of the next token at each position from `start`; the last token has no next one."""
    following = ids[start + 1 : start + 1 + len(log_probs)].astype(np.int64)
    return np.take_along_axis(log_probs[: len(following)], following[:, None], axis=-1)[:, 0]


def probe_fidelity(compressed: Runner, probe: OriginalProbe, progress: Progress | None = None) -> metrics.Fidelity:
    """Return the fidelity to the original, computed from its stored outputs.

    Those hold its most likely tokens and one bucket for the others, so the KL divergence is a lower bound. Top-1
    agreement and perplexities are exact.
    """
    kl, same, following = _unmeasured(probe.ids.shape)
    for row, ids in enumerate(probe.ids):
        logits = np.asarray(compressed.logits(ids))
        same[row] = np.argmax(logits, axis=-1) == probe.top_ids[row, :, 0]
        for span in _blocks(len(ids)):
            log_probs = metrics.log_softmax(logits[span])
            picked, rest = metrics.bucket_log_probs(log_probs, probe.top_ids[row, span])
            reference = probe.top_log_probs[row, span], probe.rest_log_prob[row, span]
            kl[row, span] = metrics.kl_lower_bound(*reference, picked, rest)
            following[1, row, span] = _next_log_probs(log_probs, ids, span.start)
        if progress:
            progress("fidelity", row + 1, len(probe.ids))
    return metrics.fidelity(kl, same, probe.next_log_prob, following[1], exact=False)


def exact_fidelity(
    compressed: Runner, original: Runner, ids: NDArray[np.integer], progress: Progress | None = None
) -> metrics.Fidelity:
    """Return the fidelity from running both models on `ids` (sequences, tokens), over the whole vocabulary."""
    kl, same, following = _unmeasured(ids.shape)
    for row, sequence in enumerate(ids):
        theirs, ours = (np.asarray(model.logits(sequence)) for model in (original, compressed))
        if theirs.shape != ours.shape:
            raise InputError(
                f"--against: the original scores {theirs.shape[-1]} tokens, the compressed model {ours.shape[-1]}"
            )
        same[row] = np.argmax(theirs, axis=-1) == np.argmax(ours, axis=-1)
        for span in _blocks(len(sequence)):
            both = metrics.log_softmax(theirs[span]), metrics.log_softmax(ours[span])
            kl[row, span] = metrics.kl_divergence(*both)
            for side, log_probs in enumerate(both):
                following[side, row, span] = _next_log_probs(log_probs, sequence, span.start)
        if progress:
            progress("fidelity", row + 1, len(ids))
    return metrics.fidelity(kl, same, following[0], following[1], exact=True)


def _unmeasured(shape: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Return empty arrays for divergences, top-1 agreement, and both models' log-probability of the next token."""
    sequences, tokens = shape
    following = np.full((2, sequences, max(tokens - 1, 0)), np.nan)
    return np.full(shape, np.nan), np.zeros(shape, dtype=np.bool_), following


def _blocks(tokens: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, tokens, _BLOCK))


def check_reference(artifact: Artifact, reference: Artifact) -> None:
    """Check that a reference can be this artifact's original.

    Raises:
        InputError: It has the same weights, it is compressed, or its vocabulary or tokenizer differs.
    """

    def weights(side: Artifact) -> list[str]:
        files = side.manifest["files"]
        return sorted(files[name]["sha256"] for name in fnmatch.filter(files, "model*safetensors"))

    where = f"--against {reference.path}"
    if weights(artifact) == weights(reference):
        raise InputError(f"{where}: holds the same weights as {artifact.path}; give the original model's export")
    if reference.quantized or any(form_of(matrix["form"]).is_compressed for matrix in reference.manifest["matrices"]):
        raise InputError(f"{where}: is a compressed model too; give the original model's export")
    ours, theirs = artifact.model["vocab_size"], reference.model["vocab_size"]
    if ours != theirs:
        raise InputError(f"{where}: vocabulary of {theirs} tokens, the artifact has {ours}; give its original")
    if _tokens(artifact) != _tokens(reference):
        raise InputError(f"{where}: {TOKENIZER} has other tokens or merges; give the artifact's original")


def _tokens(artifact: Artifact) -> Any:
    """Return the parts of `tokenizer.json` that decide the text of each token id, without formatting and defaults."""
    if not artifact.has(TOKENIZER):
        return None
    tokenizer = strict_json.read(artifact.file(TOKENIZER), limit=1 << 28)
    added = [(token.get("id"), token.get("content")) for token in tokenizer.get("added_tokens") or []]
    model = tokenizer.get("model") or {}
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model.get("merges") or []]
    return model.get("type"), model.get("vocab"), merges, sorted(added)


def text_windows(
    artifact: Artifact, text: str, window: int, max_tokens: int, begin: bool | None = None
) -> tuple[NDArray[np.int64], str]:
    """Return the first `max_tokens` tokens of a text in whole windows, (windows, window), and a description of them.

    `begin` decides whether each starts with the tokenizer's begin token; None does what the artifact records.

    Raises:
        InputError: The text is shorter than a window, or the window is longer than the context.
    """
    context = artifact.model["max_position_embeddings"]
    if not 2 <= window <= context:
        raise InputError(f"--window {window}: expected 2 to {context}, the model's context")
    if not artifact.has(TOKENIZER):
        raise InputError(f"--text: {artifact.path} has no {TOKENIZER}; leave --text out")
    tokenizer = Tokenizer(artifact)
    recorded = (artifact.manifest["calibration"] or {}).get("begin", tokenizer.begin)
    first = recorded if begin is None else tokenizer.begin if begin else None
    ids = np.asarray(tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)
    found = windows(ids, window, first)[: max_tokens // window]
    if len(found) == 0:
        raise InputError(f"--text: {len(ids)} tokens (limit {max_tokens}); at least one window of {window} is needed")
    begins = "" if first is None else f" that begin with token {first}"
    return found, f"{len(found)} window{'s' * (len(found) != 1)} of {window} tokens{begins}"
