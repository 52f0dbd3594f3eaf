"""What a release must not lose."""
