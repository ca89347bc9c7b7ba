"""Write a file so that a reader, or a kill at any instant, finds the old or the new one whole."""

import os
from collections.abc import Callable
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` in one step. A kill may leave the draft, which ``remove_drafts`` takes away."""
    write_with(path, lambda draft: draft.write_bytes(content))


def write_with(path: Path, make: Callable[[Path], object]) -> None:
    """Replace ``path`` by what ``make`` writes to the path that it is given, in one step."""
    os.replace(make_draft(path, make), path)


def make_draft(path: Path, make: Callable[[Path], object]) -> Path:
    """Return the draft of ``path``, on the disk, with the permissions of any new file, whatever ``make`` gives it."""
    draft = draft_of(path)
    draft.unlink(missing_ok=True)  # of a killed write
    draft.touch()
    mode = draft.stat().st_mode  # what the umask leaves; safetensors lets only the owner read
    draft.unlink()
    make(draft)
    draft.chmod(mode)
    sync(draft)
    return draft


def sync(path: Path) -> None:
    """Wait until ``path`` is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def is_draft(path: Path) -> bool:
    """Tell whether ``path`` is what a killed ``write`` left."""
    return path.name.startswith(".") and path.name.endswith(".draft")


def remove_drafts(folder: Path) -> None:
    """Remove what killed writes left in ``folder``; nobody else may be writing there."""
    for path in folder.iterdir():
        if is_draft(path):
            path.unlink()


def draft_of(path: Path) -> Path:
    """Return where ``path`` is written before it gets its name."""
    return path.with_name(f".{path.name}.draft")
