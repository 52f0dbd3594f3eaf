"""Writes the output folder (tensors, manifest, reports) and publishes it by one rename."""
