"""Which layers to compress, and which rows and columns to keep."""
