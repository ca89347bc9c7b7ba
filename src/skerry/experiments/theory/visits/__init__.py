"""Theorems on models, or parts of them, that visit workers with different data, on quadratics."""
