"""Defines what an artifact is (files, manifest, tensors, forms) and opens one with every byte checked."""
