"""Where a budget of parameters is spent."""
