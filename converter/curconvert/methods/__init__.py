"""Compression methods: what each one plans, which statistics it needs and which tasks it runs."""
