"""Measures speed and memory of artifacts, several of them in turn; needs no torch."""
