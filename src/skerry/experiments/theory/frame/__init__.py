"""Shared by all theorems: verdicts, estimates, rates, problems, simulations, tables, pictures."""
