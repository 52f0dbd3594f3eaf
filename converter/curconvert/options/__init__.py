"""Small frozen options, validated when they are made. No torch here."""
