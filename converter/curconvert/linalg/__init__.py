"""Linear algebra with weights and Gram matrices, in float64: products, metrics and leading bases."""
