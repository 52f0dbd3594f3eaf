"""Any smaller size from one scored artifact, without calibration or training."""
