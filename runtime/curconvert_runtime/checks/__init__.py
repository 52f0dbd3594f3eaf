"""Checks an artifact: what it is, what it computes, and how close it is to the original."""
