"""Measures speed and memory of an artifact and of another model, alternating between them; needs no torch."""
