"""Options as frozen dataclasses, which check their values when created."""
