"""Signs of life from outside: a small process tells the group's store that its parent uses the processor.

A thread of the parent cannot while one call holds the interpreter's lock (sorting, unpickling, a regular expression).
This file is run as a script that imports neither torch nor Skerry, so it starts in some 70 ms and takes 12 MB.
It speaks to torch's ``TCPStore`` directly, and only ever adds 1 to one key. It ends with its parent. Linux only.
"""

import os
import socket
import struct
import subprocess
import sys
import time

_PATIENCE_S = 10.0  # a store that does not answer for so long has gone, and this process ends
_VALIDATE, _ADD, _MAGIC = 0, 4, 0x3C85F7CE  # of the TCPStore's protocol


def start(host: str, port: int, key: str, interval_s: float) -> "subprocess.Popen[bytes] | None":
    """Start it for this process; None where it cannot run.

    Args:
        host: of the store.
        port: of the store.
        key: to add to whenever this process has used the processor, as the store itself calls it.
        interval_s: seconds between two looks.
    """
    if not sys.executable or getattr(sys, "frozen", False) or not os.path.exists(f"/proc/{os.getpid()}/stat"):
        return None
    given = [host, str(port), key, str(interval_s), str(os.getpid())]
    quiet = subprocess.DEVNULL
    command = [sys.executable, "-I", "-S", __file__, *given]
    try:
        return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    except OSError:  # no more processes are allowed
        return None


def _ticks(pid: int) -> list[bytes]:
    """Return the processor time that a process has used."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[11:13]


def _main(host: str, port: int, key: bytes, interval_s: float, parent: int) -> None:
    with socket.create_connection((host, port), timeout=_PATIENCE_S) as store:
        store.sendall(struct.pack("<BI", _VALIDATE, _MAGIC))
        before: list[bytes] = []
        while os.getppid() == parent:
            ticks = _ticks(parent)
            if ticks != before:
                store.sendall(struct.pack(f"<BQ{len(key)}sq", _ADD, len(key), key, 1))
                if not store.recv(8):
                    return
            before = ticks
            time.sleep(interval_s)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), sys.argv[3].encode(), float(sys.argv[4]), int(sys.argv[5]))
