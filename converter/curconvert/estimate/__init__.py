"""Time, memory and disk of a conversion, before it starts."""
