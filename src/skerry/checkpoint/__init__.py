"""Checkpoints and exports: what a run leaves on disk."""

from skerry.checkpoint.checkpoint import CheckpointError, Checkpoints
from skerry.checkpoint.export import export
from skerry.checkpoint.state import State

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "State",
    "export",
]
