"""Rounds stored matrices to 4 or 8 bits, by what their inputs make of the errors."""
