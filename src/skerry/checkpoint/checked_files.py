"""The files of a set for reading; each is checked against its checksum before anything of it is used."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from skerry.checkpoint.layout import FORMAT, CheckpointError, checksum, file_name
from skerry.plan.table import Plan


class CheckedFiles:
    """The files of one set.

    Args:
        folder: of the set.
        plan: which the run must have.
        run: identifies the run.
        checksums: of the files, as the index has them.
    """

    def __init__(self, folder: Path, plan: Plan, run: str, checksums: list[str]) -> None:
        self._folder, self._plan, self._run, self._checksums = folder, plan, run, checksums
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return len(self._checksums)

    def path(self, rank: int) -> Path:
        """Return the path of the file of process ``rank``."""
        return self._folder / file_name(rank, len(self))

    @contextmanager
    def open(self, rank: int) -> Iterator[Any]:
        """Open the file of process ``rank``, and check all of it the first time.

        Raises:
            CheckpointError: it is missing, damaged, or of another run, plan or set.
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
            raise CheckpointError(f"{path}: not a readable checkpoint ({error}); remove it to start again") from error

    def _check(self, rank: int, file: Any) -> None:
        path, metadata = self.path(rank), file.metadata() or {}
        own = {key: metadata.get(key, "") for key in ("format", "run", "plan", "state", "sizes")}
        found = checksum(((name, file.get_tensor(name)) for name in sorted(file.keys())), own)
        if own["format"] != FORMAT:
            raise CheckpointError(f"{path}: format '{metadata.get('format')}', expected '{FORMAT}'; it is not Skerry's")
        if metadata.get("checksum") != found:
            raise CheckpointError(
                f"{path}: its checksum does not match its contents; it is damaged, remove it to start again"
            )
        if own["run"] != self._run:
            raise CheckpointError(f"{path}: it is of a run with other settings; restore this run's file or start again")
        if own["plan"] != self._plan.digest():
            raise CheckpointError(
                f"{path}: it is of a run with another plan or number of nets; restore this run's file or start again"
            )
        if found != self._checksums[rank]:
            raise CheckpointError(f"{path}: it is of another set than checkpoint.json; restore this run's file")
