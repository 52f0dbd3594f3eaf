"""Text to token batches; token batches to statistics of each linear's input."""
