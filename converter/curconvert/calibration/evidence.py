"""Disk storage for the results of the passes over the original model; for deep models they exceed memory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from curconvert.base.durable import fsync, replace_text, save_array
from curconvert.base.types import Indices, Matrix, Vector
from curconvert.linalg.statistics import InputStatistics

_INDEX = "index.json"


class Evidence:
    """Stores the statistics of every linear, by weight name, and the hidden states that enter each block.

    Args:
        folder: A folder that outlives this object: empty, or with evidence committed earlier.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fresh: set[Path] = set()
        path = folder / _INDEX
        index = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self._leaders: dict[str, str] = index.get("leaders", {})
        self._tokens: dict[str, int] = index.get("tokens", {})
        self._sampled: set[str] = set(index.get("sampled", ()))
        self._ridges: dict[str, float] = index.get("ridges", {})

    def commit(self) -> None:
        """Write everything durably to disk, so that another process can continue from it."""
        for path in self._fresh:
            fsync(path)
        self._fresh.clear()
        index = {
            "leaders": self._leaders, "tokens": self._tokens, "ridges": self._ridges, "sampled": sorted(self._sampled)
        }  # fmt: skip
        replace_text(self._folder / _INDEX, json.dumps(index))

    def save_statistics(self, names: Iterable[str], statistics: InputStatistics) -> None:
        """Store the mean and the Gram matrix, or the samples, of the input that these linears share."""
        leader, *_ = names = tuple(names)
        self._save_moments(leader, statistics)
        if statistics.held_out is not None:
            self._save_moments(f"{leader}.held_out", statistics.held_out)
        self._leaders |= dict.fromkeys(names, leader)

    def has_statistics(self, names: Iterable[str]) -> bool:
        """Return whether the input statistics of all these linears are stored."""
        return self._leaders.keys() >= set(names)

    def statistics(self, name: str) -> InputStatistics:
        """Return a linear's input statistics, with those of the held-out part if there is one."""
        leader, held_out = self._leaders[name], f"{self._leaders[name]}.held_out"
        return replace(self._moments(leader), held_out=self._moments(held_out) if held_out in self._tokens else None)

    def statistics_of(self, names: Iterable[str]) -> dict[str, InputStatistics]:
        """Return input statistics by name, without held-out parts; linears that share an input share the object."""
        leaders = {name: self._leaders[name] for name in names}
        found = {leader: self._moments(leader) for leader in dict.fromkeys(leaders.values())}
        return {name: found[leader] for name, leader in leaders.items()}

    def _save_moments(self, key: str, statistics: InputStatistics) -> None:
        if statistics.samples is None:
            self._save("gram", key, statistics.gram)
        else:
            self._save("samples", key, statistics.samples)
            self._sampled.add(key)
        self._save("mean", key, statistics.mean)
        self._tokens[key] = statistics.tokens

    def _moments(self, key: str) -> InputStatistics:
        held = np.load(self._path("samples" if key in self._sampled else "gram", key))
        mean = np.load(self._path("mean", key))
        if key in self._sampled:
            return InputStatistics(None, self._tokens[key], mean, samples=held)
        return InputStatistics(held, self._tokens[key], mean)

    def save_fisher(self, name: str, fisher: Matrix) -> None:
        """Store the second moment of the gradient at a linear's output, (out_features, out_features)."""
        self._save("fisher", name, fisher)

    def fisher(self, name: str) -> Matrix:
        """Return the second moment of the gradient at a linear's output."""
        return np.asarray(np.load(self._path("fisher", name)))

    def save_fisher_rows(self, name: str, rows: Vector) -> None:
        """Store the Fisher information of each row of a weight, (out_features,)."""
        self._save("rows", name, rows)

    def fisher_rows(self, name: str) -> Vector:
        """Return the Fisher information of each row of a weight."""
        return np.asarray(np.load(self._path("rows", name)))

    def save_components(self, name: str, left: NDArray[np.float32], right: NDArray[np.float32]) -> None:
        """Store learned factors of a matrix: (out_features, rank), weighted, and (rank, in_features)."""
        self._save("left", name, left)
        self._save("right", name, right)

    def components(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the learned factors of a matrix."""
        return np.load(self._path("left", name)), np.load(self._path("right", name))

    def save_order(self, name: str, order: Indices) -> None:
        """Store the order in which all neurons before a down linear are dropped, the first dropped first."""
        self._save("order", name, order)

    def kept(self, name: str, count: int) -> Indices:
        """Return the `count` neurons that are dropped last, ascending."""
        return np.sort(self.leading(name, count))

    def leading(self, name: str, count: int) -> Indices:
        """Return the `count` neurons that are dropped last, the very last first."""
        order: Indices = np.load(self._path("order", name))
        return np.ascontiguousarray(order[::-1][:count])

    def save_ridge(self, name: str, ridge: float) -> None:
        """Store the ridge chosen for a down linear's refit."""
        self._ridges[name] = ridge

    def ridge(self, name: str) -> float:
        """Return the ridge chosen for a down linear's refit."""
        return self._ridges[name]

    def save_hidden(self, layer: int, batch: int, hidden: Tensor) -> None:
        """Keep the hidden states that enter a block."""
        self._save("hidden", f"{layer}.{batch}", hidden.numpy())

    def hidden(self, layer: int, batch: int) -> Tensor:
        """Return the hidden states that enter a block, for one batch."""
        return torch.from_numpy(np.load(self._path("hidden", f"{layer}.{batch}")))

    def drop_hidden(self, layer: int, batch: int) -> None:
        """Delete the hidden states of one batch, to free their disk space."""
        path = self._path("hidden", f"{layer}.{batch}")
        path.unlink(missing_ok=True)
        self._fresh.discard(path)

    def _save(self, kind: str, name: str, array: NDArray[Any]) -> None:
        path = self._path(kind, name)
        save_array(path, array)
        self._fresh.add(path)

    def _path(self, kind: str, name: str) -> Path:
        return self._folder / f"{kind}.{name}.npy"
