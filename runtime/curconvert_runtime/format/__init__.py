"""Defines the artifact's format (files, manifest, tensors, forms) and opens an artifact after checking every byte."""
