"""Any text to learn the tokens of, and the documentation of Python that Debian has as a package."""

from pathlib import Path

from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.originals.official import needed
from skerry.experiments.datasets.originals.packages import first_that_works, of_debian
from skerry.experiments.datasets.originals.unpack import members

LEAST_CHARACTERS = 1000
PACKAGE, SOURCES = "python3.11-doc", "usr/share/doc/python3.11/html/_sources/"


def text(source: Path | None) -> bytes:
    """Return the text in ``source``, which has to be UTF-8.

    Raises:
        DataError: it can't be read, is not a text, or is too short to be split.
    """
    return read_text(needed("shakespeare", source)).encode()


def python_docs(source: Path | None) -> bytes:
    """Return the text in ``source``, or the pages of Python's documentation, one after the other, by apt.

    Raises:
        DataError: it can't be had or read, is not a text, or is too short.
    """
    if source is not None and source.suffix != ".deb":
        return read_text(source).encode()
    return _pages(source) if source is not None else first_that_works(of_debian(PACKAGE, _pages))


def read_text(path: Path) -> str:
    """Return the text in ``path``.

    Raises:
        DataError: see ``text``.
    """
    try:
        content = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text in UTF-8 ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    if len(content) < LEAST_CHARACTERS:
        raise DataError(f"{path}: {len(content)} characters, expected at least {LEAST_CHARACTERS}")
    return content


def _pages(package: Path) -> bytes:
    """Return the pages in the package, in the order of their names."""
    found = dict(members(package, lambda name: name.startswith(SOURCES) and name.endswith(".txt")))
    if not found:
        raise DataError(f"{package}: no pages in {SOURCES}, expected Debian's package {PACKAGE}")
    return b"\n".join(found[name] for name in sorted(found))
