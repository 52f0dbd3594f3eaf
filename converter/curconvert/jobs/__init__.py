"""Runs the commands, one module each. Only these modules combine code from several rooms."""
