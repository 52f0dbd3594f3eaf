"""MoRA (Jiang et al. 2024, arXiv 2405.12130), which PEFT does not have: one square trained matrix, not LoRA's two.

The operators around it are the rotating ones (type 6 of the authors' code): the input is cut into
pieces of r̂ features, the i-th piece is turned as RoPE turns position i, each goes through the one M, and the results
are laid end to end and added unscaled. They share no numbers with M and have none to train.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

_BASE = 10000.0  # of RoPE's frequencies, the paper's
_Linear = TypeVar("_Linear")


class MoRALinear(nn.Module):
    """`y = W x + decompress(M compress(x))`.

    Attributes:
        base: The linear that stays as it is.
        M: (r̂, r̂), zero at first.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, base: nn.Linear, rank: int) -> None:
        """Put M beside a linear.

        Args:
            base: The linear.
            rank: r̂, even, at most its inputs.
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
        padding = x[..., : pieces * rank - x.shape[-1]]  # the first features once more, as in the paper's code
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
    """Return ranks that together train as nearly as possible a number of parameters.

    All linears have one rank, but the first ones, as many as that takes, one step more.

    Args:
        count: Parameters.
        linears: What is trained beside; a rank of 0 leaves it alone.
        price: Parameters that a linear's rank costs.
        step: Ranks are its multiples.
    """
    rank = 0
    while sum(price(linear, rank + step) for linear in linears) <= count:
        rank += step
    left = count - sum(price(linear, rank) for linear in linears)
    ranks = []
    for linear in linears:
        more = price(linear, rank + step) - price(linear, rank)
        taken = 2 * left >= more  # nearer with it than without
        left -= more if taken else 0
        ranks.append(rank + step if taken else rank)
    return ranks


def attach(model: nn.Module, names: Sequence[str], ranks: Sequence[int]) -> list[nn.Parameter]:
    """Freeze a model, put M beside some of its linears, and return what is trained.

    Args:
        model: Changed in place.
        names: Of the linears' modules.
        ranks: r̂ of each; 0 leaves it alone.
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
