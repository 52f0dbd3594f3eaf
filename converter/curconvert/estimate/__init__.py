"""Estimates the time, memory and disk space of a conversion before it starts."""
