"""Runs an artifact: takes text or token ids, gives text or logits."""
