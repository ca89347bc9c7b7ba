"""Differential privacy of each worker's samples: clipped gradients with noise, and what they tell (docs/private.md)."""

from skerry.privacy.private import Private
from skerry.privacy.private_run import PrivateRun

__all__ = ["Private", "PrivateRun"]
