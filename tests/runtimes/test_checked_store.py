"""Texts in a store whose bytes were changed on the way."""

import pytest

from skerry.runtimes.elastic.checked_store import CheckedStore
from skerry.runtimes.elastic.elastic import serve_store


@pytest.fixture
def store():
    return serve_store(0)


@pytest.mark.parametrize("text", ["roster", "", "7f3a 12", "-12", "0", "größer", "1.5"])
def test_what_is_written_is_read(store, text):
    checked = CheckedStore(store)
    checked.set("a", text)
    assert checked.check(["a"])
    assert checked.get("a") == text.encode()
    assert checked.compare_set("a", text, "new") == b"new"
    assert checked.compare_set("a", text + "x", "other") == b"new"


def test_every_changed_bit_of_a_text_is_found_and_the_text_counts_as_missing(store):
    checked = CheckedStore(store)
    checked.set("a", "[1, 2]")
    whole = store.get("a")
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        store.set("a", bytes(changed))
        assert not checked.check(["a"])
        with pytest.raises(RuntimeError, match="a was changed on the way"):
            checked.get("a")
        assert checked.compare_set("a", "", "[3]") == b"[3]"


def test_a_store_adds_to_counters(store):
    checked = CheckedStore(store)
    assert [checked.add("n", 2), checked.add("n", 3)] == [2, 5]
    checked.compare_set("n", "5", "9")
    checked.set("left", f"{-(2**41)}")
    assert (checked.add("n", 0), checked.add("left", 1)) == (9, 1 - 2**41)


def test_what_is_changed_on_its_way_here_only_is_read_again(store, monkeypatch):
    checked, bytes_read = CheckedStore(store), []
    checked.set("a", "text")
    whole = store.get("a")
    bytes_read[:] = [b"deadbeef text", whole, whole]
    monkeypatch.setattr(checked, "_store", type("", (), {"get": lambda own, key: bytes_read.pop(0)})())
    assert checked.get("a") == b"text"
