"""Probes of the toy artifact, from its NumPy oracle: a verified folder without the converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from curconvert_runtime.checks.probing import fidelity_probe, pack_probes, parity_batch, sample_vocabulary
from curconvert_runtime.format.probes import CompressedProbe
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


def toy_probe_tensors(compressed: Tensors, original: Tensors, sequences: int = 4) -> Tensors:
    """Return the tensors of the toy's `probes.safetensors`."""
    ids = np.random.default_rng(7).integers(1, VOCAB, (sequences, 30))
    chunks = [fidelity_probe(toy_logits(row.tolist(), original), np.roll(row, -1), 64) for row in ids]
    batch, lengths = parity_batch(ids, LENGTHS)
    vocabulary = sample_vocabulary(VOCAB, 100)
    logits = np.zeros((3, batch.shape[1], len(vocabulary)), np.float32)
    keys = np.zeros((2, 3, 1, batch.shape[1], WIDTH), np.float32)
    for row, length in enumerate(lengths):
        tokens = batch[row, :length].tolist()
        logits[row, :length] = toy_logits(tokens, compressed)[:, vocabulary]
        layers = toy_keys(tokens, compressed)
        keys[0, row, 0, :length], keys[1, row, 0, :length] = layers[0], layers[-1]
    return pack_probes(ids, chunks, CompressedProbe(batch, lengths, vocabulary, logits, keys[0], keys[1]))


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
