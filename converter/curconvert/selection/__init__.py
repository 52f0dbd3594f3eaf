"""Chooses the layers to compress, and the rows and columns of a matrix to keep."""
