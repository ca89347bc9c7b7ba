"""Ordinary PyTorch modules. Nothing in them knows of Skerry."""
