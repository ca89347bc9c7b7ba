"""The net and the samples, which the bench has written to files; nothing of skerry."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def net(folder: str) -> nn.Module:
    """Return the net with the values that the bench gave."""
    tensors = load_file(Path(folder) / "start.safetensors")
    hidden, inputs = tensors["0.weight"].shape
    classes = len(tensors["4.bias"])
    with torch.device("meta"):
        made = nn.Sequential(
            nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )
    made.load_state_dict(tensors, assign=True)
    return made


def batches(folder: str, site: int, round: int) -> list[tuple[Tensor, Tensor]]:
    """Return what a site trains on in a round, from 0."""
    found = load_file(Path(folder) / f"site-{site}-{round}.safetensors")
    return list(zip(found["x"], found["y"], strict=True))
