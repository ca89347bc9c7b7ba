"""A TCP relay between sites and the server, which counts bytes, and can be cut, spoil a byte, or record."""

import socket
import threading
from contextlib import suppress

_CHUNK, _MOST_RECORDED = 2**18, 2**20


class Road:
    """What comes to ``port`` goes on to ``to``, on this machine.

    Attributes:
        port: where sites dial in.
        bytes_up, bytes_down: bytes passed on to the server, and to sites.
        num_connections: accepted so far.
        num_cut: connections that ``cut`` has ended.
        num_spoilt: bytes that were changed.
        recorded: what the first connection sent, up to a MB.
    """

    def __init__(self, to: int) -> None:
        self._to, self._lock, self._up, self._spoil = to, threading.Lock(), True, False
        self._open: set[socket.socket] = set()
        self.bytes_up = self.bytes_down = self.num_connections = self.num_cut = self.num_spoilt = 0
        self.recorded = bytearray()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections, and refuse new ones until ``mend``."""
        with self._lock:
            self._up = False
            self.num_cut += len(self._open) // 2
        self._end_all()

    def mend(self) -> None:
        """Let connections through again."""
        self._up = True

    def spoil(self) -> None:
        """Change one byte of what is sent to the server next."""
        self._spoil = True

    def close(self) -> None:
        """End all connections and stop listening."""
        self._up = False
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._end_all()

    def _end_all(self) -> None:
        with self._lock:
            for end in self._open:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listening.accept()
            except OSError:
                return
            if not self._up:
                here.close()
                continue
            try:
                there = socket.create_connection(("127.0.0.1", self._to), 10)
            except OSError:
                here.close()
                continue
            for end in (here, there):
                end.settimeout(None)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                if not self._up:  # cut meanwhile
                    here.close()
                    there.close()
                    continue
                self._open |= {here, there}
                self.num_connections += 1
            first = self.num_connections == 1
            pair = threading.Barrier(2)
            for ends, upward in (((here, there), True), ((there, here), False)):
                threading.Thread(target=self._pass_on, args=(*ends, upward, first, pair), daemon=True).start()

    def _pass_on(
        self, source: socket.socket, sink: socket.socket, upward: bool, first: bool, pair: threading.Barrier
    ) -> None:
        with suppress(OSError):
            while chunk := source.recv(_CHUNK):
                if upward:
                    self.bytes_up += len(chunk)
                    if first and len(self.recorded) < _MOST_RECORDED:
                        self.recorded += chunk
                    if self._spoil and len(chunk) > 64:  # a byte of what is encrypted, and not of its length
                        self._spoil, changed = False, bytearray(chunk)
                        changed[-1] ^= 1
                        chunk, self.num_spoilt = bytes(changed), self.num_spoilt + 1
                else:
                    self.bytes_down += len(chunk)
                sink.sendall(chunk)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        if pair.wait() == 0:  # the last one closes both
            with self._lock:
                self._open -= {source, sink}
            source.close()
            sink.close()
