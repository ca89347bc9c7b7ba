"""Evaluation: a test set, metrics, and the score of a full model on it."""
