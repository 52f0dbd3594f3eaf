"""Runs the original model on calibration text and keeps the statistics of its linears' inputs."""
