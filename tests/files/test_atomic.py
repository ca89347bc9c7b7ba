"""Files are replaced whole or not at all; what the system refuses is told in a line that names file and folder."""

import errno
import io
import os
import sys
from pathlib import Path

import pytest

from skerry.files import atomic

KINDS = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "quota",
    errno.EROFS: "read-only",
    errno.EACCES: "may not",
    errno.EIO: os.strerror(errno.EIO),
}


class Refusing(io.FileIO):
    """Writes a few bytes, and then the system refuses."""

    number = errno.ENOSPC
    left = 3

    def write(self, content):
        if not self.left:
            raise OSError(self.number, os.strerror(self.number))
        self.left = 0
        return super().write(memoryview(content)[:3])


def refuse(monkeypatch, where, number):
    """Let ``where`` fail with ``number``."""

    def fail(*args, **more):
        raise OSError(number, os.strerror(number))

    if where in ("replace", "fsync"):
        monkeypatch.setattr(os, where, fail)
    elif where == "touch":
        monkeypatch.setattr(Path, where, fail)
    else:
        monkeypatch.setattr(Refusing, "number", number)
        real = io.open

        def opened(path, mode="r", buffering=-1, *more, **others):
            if not set(mode) & {"w", "a"}:
                return real(path, mode, buffering, *more, **others)
            raw = Refusing(path, mode.replace("b", ""))
            return io.BufferedWriter(raw) if buffering else raw

        monkeypatch.setattr(io, "open", opened)


@pytest.mark.parametrize("number", KINDS)
@pytest.mark.parametrize("where", ["touch", "write", "fsync", "replace"])
@pytest.mark.parametrize("there", [True, False])
def test_a_refused_write_leaves_what_was_there(tmp_path, monkeypatch, where, number, there):
    path = tmp_path / "some" / "file"
    path.parent.mkdir()
    if there:
        path.write_bytes(b"old")
    with monkeypatch.context() as patched:
        refuse(patched, where, number)
        with pytest.raises(atomic.WriteFailed) as error:
            atomic.write(path, b"new and longer")
    told = str(error.value)
    assert told.startswith(f"{path}: not written: ")
    assert told.count(str(path.parent)) == 2
    assert KINDS[number] in told
    assert "\n" not in told
    assert error.value.errno == number
    assert [p.name for p in path.parent.iterdir()] == (["file"] if there else [])
    assert not there or path.read_bytes() == b"old"
    atomic.write(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("number", KINDS)
def test_a_line_is_appended_whole_or_not_at_all(tmp_path, monkeypatch, number):
    path = tmp_path / "lines"
    atomic.append(path, b"one\n")
    with monkeypatch.context() as patched:
        refuse(patched, "write", number)
        with pytest.raises(atomic.WriteFailed, match="lines: not written"):
            atomic.append(path, b"two, longer\n")
    assert path.read_bytes() == b"one\n"
    atomic.append(path, b"three\n")
    assert path.read_bytes() == b"one\nthree\n"


def test_an_interrupted_write_leaves_no_draft(tmp_path):
    def interrupted(draft):
        draft.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic.write_with(tmp_path / "file", interrupted)
    assert not list(tmp_path.iterdir())


def _interrupted_at(event, call):
    """Call with an interrupt at one line of Python, as a signal brings it; return what came out, None for nothing."""
    count = 0

    def trace(frame, kind, argument):
        nonlocal count
        count += 1
        if count == event:
            raise KeyboardInterrupt
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except BaseException as error:
        return type(error)
    finally:
        sys.settrace(previous)
    return None


def test_an_interrupt_while_a_folder_is_removed_stays_an_interrupt(tmp_path):
    """Wherever it comes; ``shutil.rmtree`` of Python 3.11 does not pass."""
    ended, event = set(), 0
    while None not in ended:
        event += 1
        folder = tmp_path / f"{event}"
        folder.mkdir()
        for name in ("a", "b"):
            (folder / name).touch()
        ended.add(_interrupted_at(event, lambda folder=folder: atomic.remove_folder(folder)))
    assert not folder.exists()
    assert ended == {KeyboardInterrupt, None}
    atomic.remove_folder(folder)  # which is not there: without an error
