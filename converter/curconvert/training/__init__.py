"""Healing and learned spectra: loops, losses, what is trained."""
