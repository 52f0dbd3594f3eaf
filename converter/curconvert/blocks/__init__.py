"""Runs transformers' decoder blocks one at a time."""
