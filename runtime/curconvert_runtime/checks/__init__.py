"""Checks an artifact: its stored parts, the outputs of its graphs, and how close it is to the original model."""
