"""Measures quality, speed and cost that a release must not lose."""
