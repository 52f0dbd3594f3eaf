"""Weight-only quantisation: which numbers stored matrices become, and in which metric they are rounded."""
