"""Quantizes stored matrices to 4 or 8 bits, and keeps the error at their outputs small."""
