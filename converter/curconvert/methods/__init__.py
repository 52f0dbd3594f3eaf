"""The compression methods, one module each: how it plans, which statistics it needs and which tasks it runs."""
