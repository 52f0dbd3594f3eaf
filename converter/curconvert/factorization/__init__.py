"""Factorizes matrices with the statistics of their inputs, one module per algorithm."""
