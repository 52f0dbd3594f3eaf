"""Model card and HTML report."""
