"""Lines: a connection to every other member, which shows at once that its process has ended.

A connection that closes proves little: a router may do that. Whoever then refuses another one has ended, since a member
listens as long as it lives. Nothing is sent. Who is stopped, or cut off, keeps its lines: its lease shows that.
"""

import contextlib
import errno
import selectors
import socket
import time
from collections import Counter

_TRIES = 3
"""Connections to a member that may close; then only its lease says whether it is alive."""


class Lines:
    """The lines from and to one member; for a single thread, but for ``addresses`` and ``wake``.

    Args:
        host: the address at which others reach this machine.

    Attributes:
        address: where this member listens, ``"host:port"``.
        addresses: those of the members to watch, by uid.
    """

    def __init__(self, host: str) -> None:
        self._server = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._server.setblocking(False)
        self.address, self.addresses = f"{host}:{self._server.getsockname()[1]}", dict[str, str]()
        self._open, self._closed = dict[str, socket.socket](), Counter[str]()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ, "")

    def wait(self, timeout_s: float) -> list[str]:
        """Wait for ``timeout_s``, or until a connection comes or closes; return the members that have ended."""
        self._connect()
        ended = []
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._server:
                try:
                    line, _ = self._server.accept()
                    line.setblocking(False)
                    self._selector.register(line, selectors.EVENT_READ, "")
                except OSError:  # no more open files: it would be tried again at once, and again
                    time.sleep(timeout_s)
                continue
            assert isinstance(key.fileobj, socket.socket)
            refused = key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
            self._close(key.fileobj)
            if uid := key.data:
                del self._open[uid]  # the next call connects again
                self._closed[uid] += _TRIES if refused else 1
                ended += [uid] if refused else []
        return ended

    def wake(self) -> None:
        """Let another thread's ``wait`` return."""
        host, _, port = self.address.rpartition(":")
        with contextlib.suppress(OSError):
            socket.create_connection((host, int(port)), 1.0).close()

    def close(self) -> None:
        """Close all, so that the others see that this member has ended; may be called twice."""
        for key in list((self._selector.get_map() or {}).values()):
            assert isinstance(key.fileobj, socket.socket)
            self._close(key.fileobj)
        self._selector.close()

    def _connect(self) -> None:
        """Connect to the members that have no line, and close the lines to others."""
        addresses = self.addresses
        for uid in self._open.keys() - addresses.keys():
            self._close(self._open.pop(uid))
        self._closed = Counter({uid: num for uid, num in self._closed.items() if uid in addresses})
        for uid in [uid for uid in addresses if uid not in self._open and self._closed[uid] < _TRIES]:
            host, _, port = addresses[uid].rpartition(":")
            try:
                self._open[uid] = line = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            except OSError:  # no more open files: then only its lease says whether it is alive
                self._closed[uid] += 1
                continue
            line.setblocking(False)
            line.connect_ex((host, int(port)))  # ``wait`` sees what comes of it
            self._selector.register(line, selectors.EVENT_READ, uid)

    def _close(self, line: socket.socket) -> None:
        self._selector.unregister(line)
        line.close()
