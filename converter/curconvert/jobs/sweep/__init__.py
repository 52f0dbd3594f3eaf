"""Converts a model by several methods at several sizes and puts the results in one table."""
