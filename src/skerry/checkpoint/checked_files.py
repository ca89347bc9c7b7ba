"""The files of a set for reading; each is checked against its checksum before anything of it is used."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from skerry.checkpoint.layout import FORMAT, INDEX, CheckpointError, checksum, file_name


class CheckedFiles:
    """The files of one set.

    Args:
        folder: of the set.
        checksums: of the files, as the index has them.
    """

    def __init__(self, folder: Path, checksums: list[str]) -> None:
        self.folder, self._checksums = folder, checksums
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return len(self._checksums)

    def path(self, rank: int) -> Path:
        """Return the path of the file of process ``rank``."""
        return self.folder / file_name(rank, len(self))

    def problem(self, ranks: Iterable[int]) -> str:
        """Check the files of processes ``ranks``; return what is wrong with the first bad one, empty if none is."""
        try:
            for rank in ranks:
                with self.open(rank):
                    pass
        except CheckpointError as error:
            return str(error)
        return ""

    @contextmanager
    def open(self, rank: int) -> Iterator[Any]:
        """Open the file of process ``rank``, and check all of it the first time.

        Raises:
            CheckpointError: it is missing, damaged, or of another set.
        """
        path = self.path(rank)
        try:
            with safe_open(path, framework="pt") as file:
                if rank not in self._checked:
                    self._check(rank, file)
                    self._checked.add(rank)
                yield file
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{path}: missing; copy it here, or resume with the number of workers that have written the set"
            ) from error
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a readable checkpoint ({error})") from error

    def _check(self, rank: int, file: Any) -> None:
        path, metadata = self.path(rank), file.metadata() or {}
        own = {key: metadata.get(key, "") for key in ("format", "state", "sizes")}
        if own["format"] != FORMAT:
            raise CheckpointError(f"{path}: format '{metadata.get('format')}', expected '{FORMAT}'")
        found = checksum(((name, file.get_tensor(name)) for name in sorted(file.keys())), own)
        if metadata.get("checksum") != found:
            raise CheckpointError(f"{path}: damaged, its checksum does not match its contents")
        if found != self._checksums[rank]:
            raise CheckpointError(f"{path}: it is of another set than the {INDEX} beside it")
