"""How a decoder block's attention is divided into heads, and which of their dimensions belong together."""

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
    """One layer's heads. Query head h reads key and value head h // (heads / kv_heads).

    Attributes:
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Dimensions of each.
        pairs: Rotary pairs of a head: dimensions i and i + pairs turn together, i < pairs; those from 2·pairs on do not
            turn.
        normed: Whether a norm stands between the projections of queries and keys and their product.
    """

    heads: int
    kv_heads: int
    head_dim: int
    pairs: int
    normed: bool

    def kept(self, role: Role, density: float) -> int:
        """Return the dimensions of a head that a share of them is, rounded down: of queries and keys whole pairs."""
        count = int(density * self.head_dim)
        whole = role in (Role.QUERY, Role.KEY) and 2 * self.pairs == self.head_dim
        return count // 2 * 2 if whole else count

    def count(self, role: Role) -> int:
        """Return the heads of a linear: as many as the output reads, or the others give."""
        return self.heads if role in (Role.QUERY, Role.OUTPUT) else self.kv_heads

    def units(self, kept: int) -> tuple[int, int]:
        """Divide kept dimensions into rotary pairs and dimensions that do not turn, in the proportion of all.

        Args:
            kept: Of `kept`, for queries and keys.

        Returns:
            (pairs, others), 2·pairs + others = kept.
        """
        others = self.head_dim - 2 * self.pairs
        wanted = round(kept * self.pairs / self.head_dim)
        pairs = min(max(wanted, -(-(kept - others) // 2)), kept // 2)
        return pairs, kept - 2 * pairs


def attention_heads(config: Mapping[str, Any]) -> tuple[Heads, ...]:
    """Read each layer's heads from transformers' own modules.

    Args:
        config: A normalized Hugging Face config.

    Raises:
        UnsupportedError: The model attends in a way that the graphs do not express.
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
