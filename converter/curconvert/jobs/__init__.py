"""Runs the commands, one module each: the only place that composes rooms."""
