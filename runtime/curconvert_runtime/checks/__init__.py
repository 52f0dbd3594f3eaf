"""Checks an artifact: its parts, what it computes, and how close it is to the original."""
