"""Files published on official pages: where they are, and the size and checksum by which they are recognised.

The sizes and checksums of the archives are those of TensorFlow Datasets (``url_checksums``); those of the Planetoid
files, exclusive-ored, give the checksums of ``MLDatasets.jl``. None was computed from a file of our own.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from skerry.experiments.datasets.errors import DataError


@dataclass(frozen=True)
class Official:
    """A published file; ``url`` is where it, or the folder that holds it, is found."""

    file: str
    url: str
    sha256: str
    num_bytes: int | None = None


CIFAR10 = Official(
    "cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    170_052_171,
)
SPEECH_COMMANDS = Official(
    "speech_commands_v0.02.tar.gz",
    "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
    "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
    2_428_923_189,
)
SHAKESPEARE_URL = "https://github.com/karpathy/char-rnn/blob/master/data/tinyshakespeare/input.txt"
PLANETOID_URL = "https://github.com/kimiyoung/planetoid/tree/master/data"
_PLANETOID = {
    "cora": {
        "x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
        "y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
        "tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
        "ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
        "allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
        "ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
        "graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
        "test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    },
    "citeseer": {
        "x": "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
        "y": "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
        "tx": "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
        "ty": "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
        "allx": "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
        "ally": "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
        "graph": "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
        "test.index": "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
    },
}
PLANETOID = {
    name: {part: Official(f"ind.{name}.{part}", PLANETOID_URL, sha256) for part, sha256 in parts.items()}
    for name, parts in _PLANETOID.items()
}
"""The eight files of each graph, by what they hold."""

_TO_GET = {
    "cifar10": (f"{CIFAR10.file} (170 MB) from {CIFAR10.url}", CIFAR10.file),
    "speech-commands": (f"{SPEECH_COMMANDS.file} (2.4 GB) from {SPEECH_COMMANDS.url}", SPEECH_COMMANDS.file),
    "cora": (f"the files ind.cora.* from {PLANETOID_URL}", "FOLDER"),
    "citeseer": (f"the files ind.citeseer.* from {PLANETOID_URL}", "FOLDER"),
    "shakespeare": (f"any text, for example {SHAKESPEARE_URL},", "FILE"),
}
"""What to get for each data set that is not downloaded here, and what to give to ``--from``."""


def check(path: Path, official: Official) -> None:
    """Raise DataError unless ``path`` is that published file."""
    try:
        with path.open("rb") as file:
            num_bytes = file.seek(0, 2)
            file.seek(0)
            other_size = official.num_bytes not in (None, num_bytes)
            got = "" if other_size else hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"{path}: can't be read ({error.strerror}), expected {official.file} of {official.url}"
        ) from error
    if got != official.sha256:
        found = f"{num_bytes} bytes" if other_size else f"sha256 {got}"
        expected = f"{official.num_bytes} bytes" if other_size else official.sha256
        raise DataError(
            f"{path}: not {official.file}, or cut short or altered: {found}, expected {expected}; "
            f"get it again from {official.url}"
        )


def how_to_fetch(name: str) -> str:
    """Say how to get the data set ``name``."""
    what, source = _TO_GET.get(name, ("", ""))
    command = f"run: skerry data fetch {name}"
    return f"get {what} and {command} --from {source}" if what else command


def needed(name: str, source: Path | None) -> Path:
    """Return ``source``, what the data set ``name`` is made from; raise DataError if it is None."""
    if source is None:
        raise DataError(f"data set {name!r} is not downloaded here; {how_to_fetch(name)}")
    return source
