"""Linears that get smaller together; beside the forms, because plans need no NumPy."""

from __future__ import annotations

MODULAR = {"gate_proj": "modular_rows", "up_proj": "modular_rows", "down_proj": "modular_columns"}
"""The linears of a smaller MLP, each with its form: they are stored so together or not at all."""
