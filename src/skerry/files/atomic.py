"""Atomic writes: a reader finds the old file or the new one, whole, even if a writer is killed or a disk is full."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_WHY = {
    errno.ENOSPC: "the disk that holds {folder} is full; free some space there",
    errno.EDQUOT: "the disk quota for {folder} is used up; free some space there",
    errno.EROFS: "{folder} is on a read-only file system; make it writable, or choose another folder",
    errno.EACCES: "you may not write to {folder}; change its permissions, or choose another folder",
    errno.EPERM: "you may not write to {folder}; change its permissions, or choose another folder",
}


class WriteFailed(OSError):
    """A file could not be written; the message is one line that names it, its folder and the remedy."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise WriteFailed where the system does not let this process write ``path``."""
    try:
        yield
    except WriteFailed:
        raise
    except OSError as error:
        folder, why = path.parent.absolute(), _WHY.get(error.errno or 0)
        said = why.format(folder=folder) if why else f"{error.strerror or error}, in {folder}"
        failed = WriteFailed(f"{path}: not written: {said}")
        failed.errno = error.errno
        raise failed from error


def write(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` in one step. A killed write may leave a draft (see ``remove_drafts``)."""
    write_with(path, lambda draft: draft.write_bytes(content))


def write_with(path: Path, make: Callable[[Path], object]) -> None:
    """Replace ``path`` in one step by what ``make`` writes to the path that it is given."""
    draft = make_draft(path, make)
    with writing(path), _removed_on_failure(draft):
        os.replace(draft, path)


def make_draft(path: Path, make: Callable[[Path], object]) -> Path:
    """Write the draft of ``path`` with ``make``, to the disk and with a new file's permissions; return its path."""
    draft = draft_of(path)
    with writing(path), _removed_on_failure(draft):
        draft.unlink(missing_ok=True)  # left by a killed write
        draft.touch()
        mode = draft.stat().st_mode  # what the umask leaves; safetensors lets only the owner read
        draft.unlink()
        make(draft)
        draft.chmod(mode)
        sync(draft)
    return draft


@contextmanager
def _removed_on_failure(draft: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


def append(path: Path, line: bytes) -> None:
    """Append ``line`` to ``path``, or nothing of it."""
    with writing(path), path.open("ab", buffering=0) as file:
        end, rest = file.tell(), memoryview(line)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except BaseException:
            file.truncate(end)
            raise


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


def remove_folder(folder: Path) -> None:
    """Remove a folder that has files only, as far as the system lets this process.

    Not ``shutil.rmtree``: it closes a descriptor again if an interrupt comes right after it was closed, which turns
    the interrupt into an OSError.
    """
    with suppress(OSError):
        for path in [*folder.iterdir()]:
            with suppress(OSError):  # several processes may remove it at once
                path.unlink()
        folder.rmdir()


def draft_of(path: Path) -> Path:
    """Return the path that ``path`` is written to before it gets its name."""
    return path.with_name(f".{path.name}.draft")
