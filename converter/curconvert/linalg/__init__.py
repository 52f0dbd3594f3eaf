"""Computes in float64 with weights and Gram matrices: products, metrics and leading bases."""
