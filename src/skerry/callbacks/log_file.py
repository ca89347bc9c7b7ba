"""The figures of each round in one file, to plot or to read with pandas."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skerry.callbacks.logger import Figures, Logger
from skerry.files import atomic
from skerry.training.session import Session


class LogFile(Logger):
    """Writes a row per round to a CSV file (``.csv``), or a line to one of JSON lines (``.jsonl``).

    A new training replaces the file. One that is resumed goes on with it: rows of rounds that are trained again go.

    Args:
        path: of the file; its folder is made if it is missing.

    Raises:
        ValueError: the file's name has another ending; at the start of a training that is resumed: the file has not
            this training's rows.
    """

    def __init__(self, path: Path | str) -> None:
        self._path, self._columns = Path(path), list[str]()
        self._is_csv = self._path.suffix == ".csv"
        if self._path.suffix not in (".csv", ".jsonl"):
            raise ValueError(f"LogFile('{path}'): expected a name that ends in .csv or .jsonl")

    def open(self, session: Session) -> None:
        """Keep the rows of the rounds that are done."""
        done, kept = session.state.round, list[dict[str, Any]]()
        try:
            kept = [row for row in self._rows() if int(row["round"]) < done] if done else []
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"LogFile('{self._path}'): not a log of this training ({type(error).__name__}: {error}); expected rows "
                "with a round; move the file, or give another name"
            ) from error
        self._columns = list(kept[0]) if kept else []
        with atomic.writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(self._path, "".join([self._header(), *map(self._line, kept)]).encode())

    def log(self, round: int, figures: Figures) -> None:
        """Append a row."""
        row, header = {"round": round, **figures}, ""
        if not self._columns:
            self._columns = list(row)
            header = self._header()
        atomic.append(self._path, (header + self._line(row)).encode())

    def _rows(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        lines = self._path.read_bytes().decode().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # the last one may have been cut off
        return list(csv.DictReader(whole)) if self._is_csv else [json.loads(line) for line in whole]

    def _header(self) -> str:
        return self._line({name: name for name in self._columns}) if self._is_csv and self._columns else ""

    def _line(self, row: Mapping[str, object]) -> str:
        if not self._is_csv:
            return json.dumps(row) + "\n"
        text = io.StringIO()
        csv.DictWriter(text, self._columns, extrasaction="ignore", lineterminator="\n").writerow(row)
        return text.getvalue()
