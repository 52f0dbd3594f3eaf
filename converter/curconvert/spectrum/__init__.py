"""Learned spectra: `--method soco`."""
