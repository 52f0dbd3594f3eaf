"""Runs an artifact: token ids or text in, logits or text out."""
