"""Trains what statistics alone do not give: healed factors and learned ranks."""
