"""Describes the supported model families: their linears, heads, rotary embeddings and transformers classes."""
