"""Matrices to factors."""
