"""Describes the heads of a decoder block's attention, and which dimensions form rotary pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from curconvert.base.roles import Role
from curconvert.families.facts import read_facts
from curconvert.families.family import family_of
from curconvert.families.skeleton import build_skeleton


@dataclass(frozen=True)
class Heads:
    """Heads of one layer. Query head h reads key and value head h // (heads / kv_heads).

    Attributes:
        heads: Number of query heads.
        kv_heads: Number of key and value heads.
        head_dim: Dimensions of a head.
        pairs: Rotary pairs of a head: dimensions i and i + pairs rotate together, i < pairs. Dimensions from 2·pairs do
            not rotate.
        normed: Whether queries and keys are normalized before their product.
    """

    heads: int
    kv_heads: int
    head_dim: int
    pairs: int
    normed: bool

    def kept(self, role: Role, density: float) -> int:
        """Return how many dimensions of a head to keep, rounded down; if all dimensions rotate, to whole pairs."""
        count = int(density * self.head_dim)
        whole = role in (Role.QUERY, Role.KEY) and 2 * self.pairs == self.head_dim
        return count // 2 * 2 if whole else count

    def count(self, role: Role) -> int:
        """Return the number of heads of a linear: query heads for queries and output, otherwise key heads."""
        return self.heads if role in (Role.QUERY, Role.OUTPUT) else self.kv_heads

    def units(self, kept: int) -> tuple[int, int]:
        """Divide kept dimensions into rotary pairs and other dimensions, in the same proportion as in the whole head.

        Args:
            kept: Result of `kept` for queries and keys.

        Returns:
            (pairs, others), 2·pairs + others = kept.
        """
        others = self.head_dim - 2 * self.pairs
        wanted = round(kept * self.pairs / self.head_dim)
        pairs = min(max(wanted, -(-(kept - others) // 2)), kept // 2)
        return pairs, kept - 2 * pairs


def attention_heads(config: Mapping[str, Any]) -> tuple[Heads, ...]:
    """Return each layer's heads, read from transformers' own modules.

    Args:
        config: A normalized Hugging Face config.

    Raises:
        UnsupportedError: The graphs do not support the model's attention.
    """
    skeleton = build_skeleton(config)
    facts = read_facts(skeleton)
    layers = skeleton.get_submodule(family_of(config).blocks).children()
    return tuple(
        Heads(
            heads=layer.heads,
            kv_heads=layer.kv_heads,
            head_dim=layer.head_dim,
            pairs=0 if layer.rope is None else len(facts.ropes[layer.rope].inv_freq),
            normed=hasattr(module.get_submodule("self_attn"), "q_norm"),
        )
        for layer, module in zip(facts.layers, layers, strict=True)
    )
