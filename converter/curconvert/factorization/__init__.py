"""Turns matrices and statistics of their inputs into factors, one module per algorithm."""
