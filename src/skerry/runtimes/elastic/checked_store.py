"""Texts with a checksum: one whose bytes were changed on the way to the store counts as missing.

TCP lets one of 65,536 changed packets through. In the store it would stay, and mislead all members. Who waits for a
text of its own writes it anew.
"""

import re
import zlib
from typing import Protocol

from skerry.runtimes.elastic.leases import KeyStore

_READS = 3
_COUNTER = re.compile(r"-?\d+")


class Texts(KeyStore, Protocol):
    """A store that returns several values at once."""

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """Return values that exist."""
        ...


class CheckedStore:
    """A store whose texts begin with their CRC-32. Counters stay as they are, since the store adds to them."""

    def __init__(self, store: Texts) -> None:
        self._store = store

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, which starts at 0, and return it."""
        return self._store.add(key, amount)

    def set(self, key: str, value: str) -> None:
        """Write a text."""
        self._store.set(key, sealed(value))

    def get(self, key: str) -> bytes:
        """Return a text that exists; RuntimeError if its bytes were changed."""
        return opened(key, self._read(key))

    def check(self, keys: list[str]) -> bool:
        """Tell whether all keys have a text that is as it was written."""
        if not self._store.check(keys):
            return False
        values = zip(keys, self._store.multi_get(keys), strict=True)
        return all(_is_good(value) or _is_good(self._read(key)) for key, value in values)

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        """Write ``desired`` if the text is ``expected``, or was changed on the way; return the text then."""
        found = self._store.compare_set(key, sealed(expected), sealed(desired))
        if not _is_good(found):
            # torch takes bytes here as well, and these need not be UTF-8
            found = self._store.compare_set(key, found, sealed(desired))  # type: ignore[arg-type]
        return opened(key, found)

    def _read(self, key: str) -> bytes:
        """Read again what was changed: perhaps only on its way here."""
        for _ in range(_READS):
            value = self._store.get(key)
            if _is_good(value):
                break
        return value


def sealed(text: str) -> str:
    """Return a text with its CRC-32; a counter as it is."""
    return text if not text or _COUNTER.fullmatch(text) else f"{zlib.crc32(text.encode()):08x} {text}"


def _is_good(value: bytes) -> bool:
    return not value or _is_counter(value) or value[:9] == f"{zlib.crc32(value[9:]):08x} ".encode()


def _is_counter(value: bytes) -> bool:
    return _COUNTER.fullmatch(value.decode(errors="replace")) is not None


def opened(name: str, value: bytes) -> bytes:
    """Return what was sealed; RuntimeError if its bytes were changed."""
    if not _is_good(value):
        raise RuntimeError(f"{name} was changed on the way")
    return value if not value or _is_counter(value) else value[9:]
