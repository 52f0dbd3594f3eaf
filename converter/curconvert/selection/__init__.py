"""Chooses layers, and rows and columns of a matrix."""
