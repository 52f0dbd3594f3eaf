"""Where factorization tasks run: in threads of this process, or on a Ray cluster."""
