"""Atomic writes: a reader finds the old file or the new one, whole, even if the writer is killed."""

import os
from collections.abc import Callable
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` in one step. A killed write may leave a draft (see ``remove_drafts``)."""
    write_with(path, lambda draft: draft.write_bytes(content))


def write_with(path: Path, make: Callable[[Path], object]) -> None:
    """Replace ``path`` in one step by what ``make`` writes to the path that it is given."""
    os.replace(make_draft(path, make), path)


def make_draft(path: Path, make: Callable[[Path], object]) -> Path:
    """Write the draft of ``path`` with ``make``, to the disk and with a new file's permissions; return its path."""
    draft = draft_of(path)
    draft.unlink(missing_ok=True)  # left by a killed write
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
    """Tell whether ``path`` is a draft."""
    return path.name.startswith(".") and path.name.endswith(".draft")


def remove_drafts(folder: Path) -> None:
    """Remove the drafts that killed writes left in ``folder``; no other process may be writing there."""
    for path in folder.iterdir():
        if is_draft(path):
            path.unlink()


def draft_of(path: Path) -> Path:
    """Return the path that ``path`` is written to before it gets its name."""
    return path.with_name(f".{path.name}.draft")
