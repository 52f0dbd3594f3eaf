"""Holds definitions that every room may use: names, dtypes, devices, plans and errors."""
