"""The allowed names of selectors, importances and links."""

from __future__ import annotations

from typing import Literal, get_args

Selector = Literal["deim", "qdeim", "qr", "lu", "leverage", "random"]
Importance = Literal["output", "wanda", "activation", "weight"]
Link = Literal["plain", "diagonal", "full"]
SELECTORS: tuple[str, ...] = get_args(Selector)
IMPORTANCES: tuple[str, ...] = get_args(Importance)
LINKS: tuple[str, ...] = get_args(Link)
BASIS_SELECTORS = ("deim", "qdeim", "leverage")
"""Selectors that work on leading singular vectors."""
