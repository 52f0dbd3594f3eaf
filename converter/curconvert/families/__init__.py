"""The model families: what their blocks hold and how transformers builds them."""
