"""Holds the measurements behind decisions. Each script's docstring ends with the decision and its reason."""
