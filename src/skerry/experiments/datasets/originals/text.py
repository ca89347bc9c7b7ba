"""Any text to learn the characters of."""

from pathlib import Path

from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.originals.official import needed

LEAST_CHARACTERS = 1000


def text(source: Path | None) -> bytes:
    """Return the text in ``source``, which has to be UTF-8.

    Raises:
        DataError: it can't be read, is not a text, or is too short to be split.
    """
    source = needed("shakespeare", source)
    try:
        content = source.read_bytes()
        length = len(content.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not a text in UTF-8 ({error})") from error
    except OSError as error:
        raise DataError(f"{source}: can't be read ({error.strerror})") from error
    if length < LEAST_CHARACTERS:
        raise DataError(f"{source}: {length} characters, expected at least {LEAST_CHARACTERS}")
    return content
