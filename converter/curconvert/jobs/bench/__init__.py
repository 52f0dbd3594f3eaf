"""Speed and memory of an artifact, alone or in turn with another one. Needs no torch."""
