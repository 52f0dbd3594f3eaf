"""What an interrupted run leaves, so that the same command goes on from it."""
