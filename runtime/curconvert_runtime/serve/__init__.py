"""Runs an artifact: text or token ids in, text or logits out."""
