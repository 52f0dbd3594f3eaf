"""Write the output folder: tensors, manifest, atomic publication."""
