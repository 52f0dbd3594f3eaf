"""Quantizes stored matrices to 3 to 8 bits, and keeps the error at their outputs small."""
