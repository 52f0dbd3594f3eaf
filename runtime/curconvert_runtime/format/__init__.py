"""What an artifact is: file names, manifest, tensors, forms, graphs; opening one checks it."""
