"""Recognizes adapters, and merges them into a base model one tensor at a time."""
