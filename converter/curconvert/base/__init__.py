"""Holds what every room may use: names, dtypes, devices, plans and errors."""
