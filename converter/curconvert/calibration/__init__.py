"""Runs the original on calibration text and keeps the statistics of its linears."""
