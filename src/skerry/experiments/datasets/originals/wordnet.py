"""WordNet 3.0 as a graph, from the database files of Debian's ``wordnet-base``, whose format is described in wndb(5WN).

Nodes are the synsets, in the order of the files of nouns, verbs, adjectives and adverbs; edges the pointers between
two synsets or words in them, once and undirected. The class is the lexicographer file. Features are the words, runs of
a-z in lower case, that at least 50 glosses have. By numpy's permutation, half of the nodes train and a quarter each
validates and tests.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.originals.packages import first_that_works, of_debian
from skerry.experiments.datasets.originals.sparse import frequent, sparse_rows, undirected
from skerry.experiments.datasets.originals.unpack import members

PACKAGE = "wordnet-base"
FILES = {"n": "data.noun", "v": "data.verb", "a": "data.adj", "r": "data.adv"}
GLOSSES_WITH_A_WORD = 50  # at least
SHA256 = "df28b6827f378426bf8abdd99325064766db1c9de19624b70e0ddf9f631db0ff"
"""Of the bytes of all arrays made from Debian 12's version 1:3.0-37, in order."""


def wordnet(source: Path | None) -> dict[str, NDArray[Any]]:
    """Return the arrays of ``wordnet.npz`` made from a Debian package or a folder with its files, or by apt.

    Raises:
        DataError: the files can't be had or read, or give another graph.
    """
    if source is not None:
        return _checked(graph(_of_folder(source) if source.is_dir() else _of_package(source), source), source)
    try:
        return first_that_works(
            of_debian(PACKAGE, lambda package: _checked(graph(_of_package(package), package), package))
        )
    except DataError as error:
        raise DataError(
            f"wordnet: {error}; copy the package {PACKAGE} of Debian 12 (version 1:3.0-37), or a folder with its files "
            f"{', '.join(FILES.values())}, to this machine and run: skerry data fetch wordnet --from PATH"
        ) from error


def graph(files: Mapping[str, bytes], where: Path) -> dict[str, NDArray[Any]]:
    """Return the graph in the ``files``, by their names.

    Raises:
        DataError: a file is missing or not in WordNet's format.
    """
    numbers: dict[tuple[str, str], int] = {}  # of synsets, by part of speech and offset
    labels, glosses, pointers = list[int](), list[set[str]](), list[list[tuple[str, str]]]()
    for part, file in FILES.items():
        if file not in files:
            raise DataError(f"{where}: no {file} in it, expected {', '.join(FILES.values())}")
        try:
            for line in files[file].decode("latin-1").splitlines():
                if line.startswith("  "):
                    continue  # the licence
                entry, _, gloss = line.partition("|")
                words = entry.split()
                at = 4 + 2 * int(words[3], 16)  # after the words of the synset: the number of pointers, four words each
                numbers[part, words[0]] = len(labels)
                labels.append(int(words[1]))
                glosses.append(set(re.findall("[a-z]+", gloss.lower())))
                ends = range(at + 1, at + 1 + 4 * int(words[at]), 4)
                pointers.append([(words[k + 2].replace("s", "a"), words[k + 1]) for k in ends])
        except (ValueError, IndexError) as error:
            raise DataError(f"{where}: {file} is not in WordNet's format, or damaged ({error})") from error
    try:
        pairs = {(k, numbers[end]) for k, ends in enumerate(pointers) for end in ends}
    except KeyError as error:
        raise DataError(f"{where}: a pointer to a synset that no file has, {error}; the files are damaged") from error
    split = np.zeros(len(labels), np.uint8)
    order = np.random.default_rng(0).permutation(len(labels))
    split[order[len(labels) // 2 :]] = 1
    split[order[len(labels) * 3 // 4 :]] = 2
    return {
        **sparse_rows("x", glosses, frequent(glosses, GLOSSES_WITH_A_WORD)),
        "edges": undirected(pairs),
        "label": np.array(labels, np.int16),
        "split": split,
    }


def _checked(arrays: dict[str, NDArray[Any]], where: Path) -> dict[str, NDArray[Any]]:
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array).data)
    if digest.hexdigest() != SHA256:
        raise DataError(
            f"{where}: another WordNet, {len(arrays['label'])} synsets and {arrays['edges'].shape[1]} relations; "
            f"expected that of Debian 12, {PACKAGE} 1:3.0-37, with 117659 and 183789"
        )
    return arrays


def _of_package(package: Path) -> dict[str, bytes]:
    found = members(package, lambda name: name.startswith("usr/share/wordnet/data."))
    return {name.rpartition("/")[2]: content for name, content in found}


def _of_folder(folder: Path) -> dict[str, bytes]:
    try:
        return {file: (folder / file).read_bytes() for file in FILES.values()}
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}, expected {', '.join(FILES.values())} there") from error
