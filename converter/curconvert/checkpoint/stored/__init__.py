"""Computes weights from the quantized tensors of a checkpoint, one tensor at a time."""
