"""The names that options may have: selectors, importances, links, approximations, forms."""

from __future__ import annotations

from typing import Literal, get_args

Selector = Literal["deim", "qdeim", "qr", "lu", "leverage", "random"]
Importance = Literal["output", "wanda", "activation", "weight"]
Link = Literal["plain", "diagonal", "full"]
Approximation = Literal["svd_llm", "asvd", "fwsvd", "svd"]
SELECTORS: tuple[str, ...] = get_args(Selector)
IMPORTANCES: tuple[str, ...] = get_args(Importance)
LINKS: tuple[str, ...] = get_args(Link)
APPROXIMATIONS: tuple[str, ...] = get_args(Approximation)
BASIS_SELECTORS = ("deim", "qdeim", "leverage")
"""Selectors that work on leading singular vectors."""
