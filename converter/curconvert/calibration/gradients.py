"""Collects the inputs of linears and the gradients at their outputs, token by token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from curconvert.base.types import Matrix, Vector

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class GradientSamples:
    """Holds the input and the output gradient of each token at one linear.

    They are float32, because their means over a sample have a noise of a few percent anyway.

    Attributes:
        inputs: x, (tokens, in_features).
        gradients: g, with respect to the output, (tokens, out_features).
    """

    inputs: Samples
    gradients: Samples

    @property
    def fisher(self) -> Matrix:
        """`E[g gᵀ]`, (out_features, out_features)."""
        return (self.gradients.T @ self.gradients).astype(np.float64) / len(self.gradients)

    @property
    def fisher_rows(self) -> Vector:
        """Fisher information of the weight, summed over each row: `E[g_i² ‖x‖²]`, (out_features,).

        The gradient of entry W_ij at one token is `g_i x_j`.
        """
        scaled = self.gradients * np.linalg.norm(self.inputs, axis=1, keepdims=True)
        return np.asarray(np.einsum("ti,ti->i", scaled, scaled, dtype=np.float64) / len(scaled))

    def centered(self, mean: Vector) -> GradientSamples:
        """Return the same tokens with `x − mean` instead of x."""
        return replace(self, inputs=self.inputs - mean.astype(np.float32))


class GradientCollector:
    """Records the inputs and output gradients of some linears while a block runs forwards and backwards."""

    def __init__(self, linears: Mapping[str, nn.Module]) -> None:
        self._linears = linears
        self._inputs: dict[str, list[Tensor]] = {name: [] for name in linears}
        self._gradients: dict[str, list[Tensor]] = {name: [] for name in linears}

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Watch every forward call inside the context, and the backward pass that follows it."""
        handles = [module.register_forward_hook(self._hook(name)) for name, module in self._linears.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str):  # type: ignore[no-untyped-def]  # torch's hook type is not public
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._inputs[name].append(inputs[0].detach())
            keep = self._gradients[name].append
            output.register_hook(lambda gradient: keep(gradient.detach()))  # type: ignore[no-untyped-call]

        return hook

    def samples(self) -> Iterable[tuple[str, GradientSamples]]:
        """Yield each linear's name with its tokens, and release them."""
        for name in self._linears:
            parts = (self._inputs.pop(name), self._gradients.pop(name))
            inputs, gradients = (
                torch.cat([part.reshape(-1, part.shape[-1]) for part in found]).numpy() for found in parts
            )
            yield name, GradientSamples(inputs, gradients)
