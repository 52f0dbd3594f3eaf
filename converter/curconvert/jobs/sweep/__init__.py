"""Every method at several sizes, in one table."""
