"""Decisions taken; the docstring of each script ends with what was decided, and why."""
