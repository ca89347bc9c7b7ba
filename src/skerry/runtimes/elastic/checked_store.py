"""Texts in the store with a checksum: one whose bytes were changed on the way counts as missing, and is written anew.

TCP lets one of 65,536 changed packets through. In the store it would stay, and mislead all members.
"""

import re
import zlib

from skerry.runtimes.elastic.leases import KeyStore

_READS = 3
_COUNTER = re.compile(r"-?\d+")


class CheckedStore:
    """A store whose texts begin with their CRC-32. Counters stay as they are, since the store adds to them."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, which starts at 0, and return it."""
        return self._store.add(key, amount)

    def set(self, key: str, value: str) -> None:
        """Write a text."""
        self._store.set(key, _sealed(value))

    def get(self, key: str) -> bytes:
        """Return a text that exists; RuntimeError if its bytes were changed."""
        return _opened(key, self._read(key))

    def check(self, keys: list[str]) -> bool:
        """Tell whether all keys have a text that is as it was written."""
        return self._store.check(keys) and all(_is_good(self._read(key)) for key in keys)

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        """Write ``desired`` if the text is ``expected``, or was changed on the way; return the text then."""
        found = self._store.compare_set(key, _sealed(expected), _sealed(desired))
        if not _is_good(found):
            # torch takes bytes here as well, and these need not be UTF-8
            found = self._store.compare_set(key, found, _sealed(desired))  # type: ignore[arg-type]
        return _opened(key, found)

    def _read(self, key: str) -> bytes:
        """Read again what was changed: perhaps only on its way here."""
        for _ in range(_READS):
            value = self._store.get(key)
            if _is_good(value):
                break
        return value


def _sealed(text: str) -> str:
    return text if not text or _COUNTER.fullmatch(text) else f"{zlib.crc32(text.encode()):08x} {text}"


def _is_good(value: bytes) -> bool:
    return not value or _is_counter(value) or value[:9] == f"{zlib.crc32(value[9:]):08x} ".encode()


def _is_counter(value: bytes) -> bool:
    return _COUNTER.fullmatch(value.decode(errors="replace")) is not None


def _opened(key: str, value: bytes) -> bytes:
    if not _is_good(value):
        raise RuntimeError(f"the store's {key} was changed on the way")
    return value if not value or _is_counter(value) else value[9:]
