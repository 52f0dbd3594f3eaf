"""Probes of the toy artifact, from its NumPy oracle: a verified folder without the converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.safetensors_files import save_file
from support.tiny_artifact import LAYERS, VOCAB, WIDTH, reseal, toy_logits, toy_tensors, write_toy

LENGTHS = (29, 22, 18)
Tensors = dict[str, NDArray[Any]]


def original_tensors() -> Tensors:
    """Return the toy before its 'compression': other embeddings, a dense matrix, no factors."""
    rng = np.random.default_rng(5)
    tensors = {name: value for name, value in toy_tensors().items() if "gate_proj" not in name}
    embedding = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = embedding + 0.02 * rng.standard_normal(embedding.shape).astype(np.float32)
    return tensors


def toy_keys(ids: list[int], tensors: Tensors) -> list[NDArray[np.float64]]:
    """Return each layer's keys, (tokens, WIDTH): the toy uses its hidden states as keys."""
    h = tensors["model.embed_tokens.weight"].astype(np.float64)[ids] + tensors["model.positions.weight"][: len(ids)]
    keys = []
    for _ in range(LAYERS):
        keys.append(h)
        scores = np.where(np.tri(len(ids)) > 0, h @ h.T / np.sqrt(WIDTH), -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        h = h + weights / weights.sum(axis=1, keepdims=True) @ h
    return keys


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _original(ids: NDArray[np.int64], tensors: Tensors, top: int) -> Tensors:
    """Return what the original answers: its most likely tokens, the others' probability, the text's own next token."""
    log_probs = _log_softmax(np.stack([toy_logits(row.tolist(), tensors) for row in ids]))
    order = np.argsort(-log_probs, axis=-1, kind="stable")
    chosen, others = order[..., :top], order[..., top:]
    following = np.take_along_axis(log_probs[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
    rest = np.log(np.exp(np.take_along_axis(log_probs, others, axis=-1)).sum(axis=-1))
    return {
        "ids": ids.astype(np.int32),
        "top_ids": chosen.astype(np.int32),
        "top_log_probs": np.take_along_axis(log_probs, chosen, axis=-1).astype(np.float32),
        "rest_log_prob": rest.astype(np.float32),
        "next_log_prob": following.astype(np.float32),
    }


def _compressed(ids: NDArray[np.int64], tensors: Tensors) -> Tensors:
    """Return logits at some of the vocabulary, and keys, of right-padded sequences."""
    shape, vocabulary = (len(LENGTHS), max(LENGTHS)), np.arange(0, VOCAB, 3, dtype=np.int32)
    found: Tensors = {
        "ids": np.zeros(shape, np.int32),
        "lengths": np.array(LENGTHS, np.int32),
        "vocabulary": vocabulary,
        "logits": np.zeros((*shape, len(vocabulary)), np.float32),
        "first_key": np.zeros((shape[0], 1, shape[1], WIDTH), np.float32),
        "last_key": np.zeros((shape[0], 1, shape[1], WIDTH), np.float32),
    }
    for row, length in enumerate(LENGTHS):
        tokens = ids[row, :length].tolist()
        found["ids"][row, :length] = tokens
        found["logits"][row, :length] = toy_logits(tokens, tensors)[:, vocabulary]
        keys = toy_keys(tokens, tensors)
        found["first_key"][row, 0, :length], found["last_key"][row, 0, :length] = keys[0], keys[-1]
    return found


def toy_probe_tensors(compressed: Tensors, original: Tensors, sequences: int = 4) -> Tensors:
    """Return the tensors of the toy's `probes.safetensors`."""
    ids = np.random.default_rng(7).integers(1, VOCAB, (sequences, 30))
    parts = {"original": _original(ids, original, 64), "compressed": _compressed(ids, compressed)}
    return {f"{part}.{name}": array for part, tensors in parts.items() for name, array in tensors.items()}


def write_verified_toy(folder: Path) -> Path:
    """Write a toy artifact with probes: `verify` passes on it."""
    tensors = toy_tensors()
    write_toy(folder, tensors)
    save_file(toy_probe_tensors(tensors, original_tensors()), folder / "probes.safetensors")
    reseal(folder)
    return folder


def write_original_toy(folder: Path) -> Path:
    """Write the original toy as an exported, uncompressed folder."""
    write_toy(folder, original_tensors())
    reseal(folder, lambda manifest: manifest.update(matrices=[]))
    return folder
