"""The task ``debian-depends`` from paragraphs of Debian's Packages files: words of a package -> what it depends on.

Words are the runs of a-z and 0-9 in a package's name, short description and section, lower case, that at least five
packages have. Labels are the first alternatives of ``Depends`` that at least two packages have. Samples are the
packages with a label, by name; a fifth is the test set: those whose name has a sha1 that 5 divides.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.originals.packages import first_that_works, of_apts_lists
from skerry.experiments.datasets.originals.sparse import frequent, sparse_rows
from skerry.experiments.datasets.originals.unpack import DAMAGED, MOST_BYTES, decompressed

PACKAGES_WITH_A_WORD, PACKAGES_WITH_A_LABEL = 5, 2  # at least


def debian_depends(source: Path | None) -> dict[str, NDArray[Any]]:
    """Return the arrays of ``debian_depends.npz`` made from a Packages file, plain, gzip or xz, or from apt's lists.

    Raises:
        DataError: it can't be read or has no package that depends on others.
    """
    if source is not None:
        return from_paragraphs(_read(source), str(source))
    try:
        return first_that_works(of_apts_lists(lambda text: from_paragraphs(text, "apt's lists")))
    except DataError as error:
        raise DataError(
            f"debian-depends: {error}; copy a Packages file of Debian, plain, .gz or .xz, to this machine and run: "
            "skerry data fetch debian-depends --from Packages.xz"
        ) from error


def from_paragraphs(text: str, where: str) -> dict[str, NDArray[Any]]:
    """Return the task of the packages in ``text``; of several paragraphs with one name the last counts."""
    words: dict[str, set[str]] = {}
    labels: dict[str, set[str]] = {}
    for paragraph in text.split("\n\n"):
        name, description, section, depends = (
            found[1] if (found := re.search(rf"^{field}: *(.*)$", paragraph, re.MULTILINE)) else ""
            for field in ("Package", "Description", "Section", "Depends")
        )
        if name:
            words[name] = set(re.findall("[a-z0-9]+", f"{name} {description} {section}".lower()))
            labels[name] = {re.split("[ (:|]", first.strip())[0] for first in depends.split(",") if first.strip()}
    known_words = frequent(words.values(), PACKAGES_WITH_A_WORD)
    known_labels = frequent(labels.values(), PACKAGES_WITH_A_LABEL)
    names = sorted(name for name, own in labels.items() if own & known_labels.keys())
    if not names:
        raise DataError(f"{where}: no packages that depend on others; expected paragraphs as in Debian's Packages")
    return {
        **sparse_rows("x", [words[name] for name in names], known_words),
        **sparse_rows("y", [labels[name] for name in names], known_labels),
        "test": np.array([int(hashlib.sha1(name.encode()).hexdigest(), 16) % 5 == 0 for name in names]),
    }


def _read(source: Path) -> str:
    try:
        with source.open("rb") as file:
            content = decompressed(file).read(MOST_BYTES)
    except (OSError, *DAMAGED) as error:
        raise DataError(f"{source}: can't be read, or truncated or altered ({error})") from error
    if len(content) == MOST_BYTES:
        raise DataError(f"{source}: unpacks to {MOST_BYTES} bytes or more, which is refused")
    return content.decode(errors="replace")
