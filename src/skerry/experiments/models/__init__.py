"""Ordinary PyTorch modules. They import nothing from Skerry."""
