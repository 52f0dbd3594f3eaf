"""Measures the cost of every size of every matrix and divides one parameter budget among the matrices."""
