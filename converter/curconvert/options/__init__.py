"""Frozen options, checked when they are made."""
