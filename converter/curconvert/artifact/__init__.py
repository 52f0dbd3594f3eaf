"""Writes the output folder: tensors, manifest and reports, published by one rename."""
