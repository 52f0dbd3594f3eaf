"""Matrices, their statistics and solves with them, in float64."""
