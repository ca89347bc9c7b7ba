"""Theorems on quadratics with permutation sketches."""
