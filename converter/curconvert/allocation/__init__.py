"""Prices every size of every matrix and spends one budget on them."""
