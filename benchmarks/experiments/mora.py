"""Implements MoRA (Jiang et al. 2024, arXiv 2405.12130), which trains one square matrix M instead of LoRA's two.

PEFT does not have it. The operators around M are the rotating ones (type 6 of the authors' code). The input is cut into
pieces of r̂ features. Piece i is rotated as RoPE rotates position i, then multiplied by M. The concatenated results are
added unscaled. These operators have no trained parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

_BASE = 10000.0  # base of RoPE's frequencies, as in the paper
_Linear = TypeVar("_Linear")


class MoRALinear(nn.Module):
    """`y = W x + decompress(M compress(x))`.

    Attributes:
        base: The frozen linear W.
        M: (r̂, r̂), initially zero.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, base: nn.Linear, rank: int) -> None:
        """Add M to a linear.

        Args:
            base: The linear.
            rank: r̂, even, at most the linear's number of inputs.
        """
        super().__init__()
        if rank % 2 or not 0 < rank <= base.in_features:
            raise ValueError(f"rank {rank}: expected an even number from 2 to {base.in_features}")
        self.base, self.out_features = base, base.out_features
        self.M = nn.Parameter(torch.zeros(rank, rank))
        pieces = -(-base.in_features // rank)
        frequencies = _BASE ** (-torch.arange(0, rank, 2) / rank)
        angles = torch.outer(torch.arange(pieces), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        pieces, rank = self.cos.shape
        padding = x[..., : pieces * rank - x.shape[-1]]  # repeats the first features, as the paper's code does
        parts = torch.cat([x, padding], -1).reshape(*x.shape[:-1], pieces, rank)
        front, back = parts.chunk(2, -1)
        turned = parts * self.cos + torch.cat([-back, front], -1) * self.sin
        found = functional.linear(turned, self.M).flatten(-2)
        times = -(-self.out_features // found.shape[-1])
        y: Tensor = self.base(x)
        return y + torch.cat([found] * times, -1)[..., : self.out_features]


def spread_ranks(
    count: int, linears: Sequence[_Linear], price: Callable[[_Linear, int], int], step: int = 1
) -> list[int]:
    """Return ranks that together train as close to `count` parameters as possible.

    All linears get the same rank, and the first ones get one step more until the count is reached.

    Args:
        count: Number of parameters.
        linears: The linears to train beside; a rank of 0 skips one.
        price: Returns the parameters of a linear at a rank.
        step: Ranks are multiples of it.
    """
    rank = 0
    while sum(price(linear, rank + step) for linear in linears) <= count:
        rank += step
    left = count - sum(price(linear, rank) for linear in linears)
    ranks = []
    for linear in linears:
        more = price(linear, rank + step) - price(linear, rank)
        taken = 2 * left >= more  # take the step if it brings the count closer
        left -= more if taken else 0
        ranks.append(rank + step if taken else rank)
    return ranks


def attach(model: nn.Module, names: Sequence[str], ranks: Sequence[int]) -> list[nn.Parameter]:
    """Freeze a model, add M to some of its linears, and return the trained parameters.

    Args:
        model: The model, changed in place.
        names: Names of the linears' modules.
        ranks: r̂ of each linear; 0 skips it.
    """
    model.requires_grad_(False)
    found = []
    for name, rank in zip(names, ranks, strict=True):
        if rank:
            parent, _, attribute = name.rpartition(".")
            base = model.get_submodule(name)
            assert isinstance(base, nn.Linear)
            linear = MoRALinear(base, rank)
            setattr(model.get_submodule(parent), attribute, linear)
            found.append(linear.M)
    return found
