"""Checkpoints and exports: what a run leaves on disk."""

from skerry.checkpoint.checkpoints import Checkpoints
from skerry.checkpoint.export import export
from skerry.checkpoint.layout import CheckpointError
from skerry.checkpoint.pretrained import save_pretrained
from skerry.checkpoint.state import State

__all__ = ["CheckpointError", "Checkpoints", "State", "export", "save_pretrained"]
