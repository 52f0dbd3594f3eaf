"""Run transformers' decoder blocks one at a time."""
