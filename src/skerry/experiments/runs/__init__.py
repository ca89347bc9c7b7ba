"""Runs: what a config names, built and trained in a folder."""
