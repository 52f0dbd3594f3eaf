"""Trains by gradient descent: heals factors, and learns ranks."""
