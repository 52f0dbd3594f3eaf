"""CURing (arXiv 2501.04211) as the paper prints it, in NumPy float64: the oracle of `--method curing`.

Nothing of the converter is used: activations come from forward hooks on transformers' model, one sequence at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
TARGETS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj")


@dataclass(frozen=True)
class PaperFactors:
    """What the paper makes of one matrix."""

    rows: list[int]
    columns: list[int]
    U: Matrix


def observe(model: Any, ids: NDArray[np.int64], num_layers: int) -> tuple[Matrix, dict[str, Matrix]]:
    """Run the original model over every sequence.

    Returns:
        Last token's state after each decoder layer (layers, sequences, hidden), and per target the RMS of its inputs.
    """
    states: list[list[Matrix]] = [[] for _ in range(num_layers)]
    squares: dict[str, Matrix] = {}
    handles = []

    def keep_state(index: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            states[index].append(hidden[0, -1].double().numpy())

        return hook

    def add_squares(name: str) -> Any:
        def hook(_module: Any, inputs: Any) -> None:
            x = inputs[0][0].double().numpy()
            squares[name] = squares.get(name, 0.0) + (x**2).sum(axis=0)

        return hook

    for index, layer in enumerate(model.model.layers):
        handles.append(layer.register_forward_hook(keep_state(index)))
        for target in TARGETS:
            name = f"model.layers.{index}.{target}.weight"
            handles.append(layer.get_submodule(target).register_forward_pre_hook(add_squares(name)))
    with torch.inference_mode():
        for row in ids:
            model(input_ids=torch.from_numpy(row)[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return np.array(states), {name: np.sqrt(total / ids.size) for name, total in squares.items()}


def choose_layers(states: Matrix, count: int) -> list[int]:
    """Take the `count` layers of smallest mean angular distance; never the first or the last."""
    distances = {}
    for layer in range(1, len(states) - 1):
        angles = []
        for before, after in zip(states[layer - 1], states[layer], strict=True):
            cosine = before @ after / (np.linalg.norm(before) * np.linalg.norm(after))
            angles.append(math.acos(min(1.0, max(-1.0, cosine))) / math.pi)
        distances[layer] = sum(angles) / len(angles)
    return sorted(sorted(distances, key=lambda layer: distances[layer])[:count])


def rank_of(m: int, n: int, largest: int) -> int:
    """Break-even rank of the paper, at most `largest`."""
    return min(math.floor((math.sqrt(m**2 + 6 * m * n + n**2) - (m + n)) / 2), largest)


def deim(basis: Matrix) -> list[int]:
    """Greedy DEIM."""
    points = [int(np.argmax(np.abs(basis[:, 0])))]
    for k in range(1, basis.shape[1]):
        coefficients = np.linalg.solve(basis[points, :k], basis[points, k])
        points.append(int(np.argmax(np.abs(basis[:, k] - basis[:, :k] @ coefficients))))
    return points


def factorize(weight: Matrix, rms: Matrix, largest: int) -> PaperFactors:
    """WANDA importance, full SVD, DEIM on both sides, U = C⁺ W R⁺."""
    rank = rank_of(*weight.shape, largest)
    left, _, right = np.linalg.svd(np.abs(weight) * rms[None, :], full_matrices=False)
    rows, columns = deim(left[:, :rank]), deim(right[:rank].T)
    U = np.linalg.pinv(weight[:, columns]) @ weight @ np.linalg.pinv(weight[rows])
    return PaperFactors(rows, columns, U)
