"""Inputs and output gradients of linears, against autograd's own."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from curconvert.calibration.gradients import GradientCollector


def test_samples_are_what_autograd_sees() -> None:
    """Every batch is kept, in order, and the Fisher matrix is the gradients' second moment."""
    torch.manual_seed(0)
    first, second = nn.Linear(5, 4), nn.Linear(4, 3)
    collector = GradientCollector({"first": first, "second": second})
    seen: list[torch.Tensor] = []
    with collector.collecting():
        for _ in range(2):
            x = torch.randn(2, 6, 5, requires_grad=True)
            middle = first(x)
            middle.retain_grad()
            second(middle.tanh()).pow(2).sum().backward()
            assert middle.grad is not None
            seen.append(middle.grad.flatten(0, 1))
    samples = dict(collector.samples())
    expected = torch.cat(seen).numpy()
    np.testing.assert_allclose(samples["first"].gradients, expected, rtol=1e-6)
    assert samples["first"].inputs.shape == (24, 5)
    assert samples["second"].inputs.shape == (24, 4)
    np.testing.assert_allclose(samples["first"].fisher, expected.T @ expected / 24, rtol=1e-5)
    squares = [np.outer(g, x) ** 2 for g, x in zip(expected, samples["first"].inputs, strict=True)]
    np.testing.assert_allclose(samples["first"].fisher_rows, np.mean(squares, axis=0).sum(axis=1), rtol=1e-5)


def test_nothing_is_watched_outside() -> None:
    """The hooks go with the context."""
    linear = nn.Linear(3, 3)
    collector = GradientCollector({"a": linear})
    with collector.collecting():
        linear(torch.randn(1, 2, 3)).sum().backward()
    linear(torch.randn(1, 2, 3)).sum().backward()
    ((_, samples),) = collector.samples()
    assert len(samples.inputs) == len(samples.gradients) == 2
