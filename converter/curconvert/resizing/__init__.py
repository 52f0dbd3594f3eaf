"""Cuts a scored artifact to a smaller size, without calibration or training."""
