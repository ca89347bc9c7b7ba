"""Write a file so that a reader, or a kill at any instant, finds the old or the new one whole."""

import os
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` in one step. A kill may leave the draft, which ``remove_drafts`` takes away."""
    draft = _draft(path)
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def is_draft(path: Path) -> bool:
    """Tell whether ``path`` is what a killed ``write`` left."""
    return path.name.startswith(".") and path.name.endswith(".draft")


def remove_drafts(folder: Path) -> None:
    """Remove what killed writes left in ``folder``; nobody else may be writing there."""
    for path in folder.iterdir():
        if is_draft(path):
            path.unlink()


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.draft")
