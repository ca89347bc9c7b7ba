"""Hosts whose links break: no carrier, one way only, or bytes that change on the way (Linux, root).

A link that spoils bytes is a program: ``_Relay`` carries the frames between a host and the switch. The kernel tells it,
in a header before each frame, whether the receiver must still check TCP's sum. A *spoilt* byte is one that the sum
shows, as on a real wire: the receiver drops the packet, and the sender repeats it. A *forged* byte comes with a right
sum, as from a router with bad memory.
"""

import contextlib
import ctypes
import random
import select
import socket
import threading

from hosts import NAMESPACES, Hosts, tool

_NEW_NET = 0x40000000
_ALL = 3  # ETH_P_ALL
_HEADER, _ETHERNET = 10, 14  # bytes before a frame (struct virtio_net_hdr), and before its packet
_VNET_HEADER = (263, 15)  # SOL_PACKET, PACKET_VNET_HDR
_EACH = 0.3
"""Part of the packets with content that change."""


def enter(name: str) -> None:
    """Move this thread into a network namespace; what it starts later will be there, too."""
    with open(NAMESPACES / name) as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _NEW_NET):
            raise OSError(ctypes.get_errno(), f"cannot enter {name}")


class BreakableHosts(Hosts):
    """Hosts whose links break and are mended."""

    def __enter__(self) -> "BreakableHosts":
        super().__enter__()
        self._relays = dict[int, _Relay]()
        return self

    def close(self) -> None:
        """Stop the relays, and remove the hosts."""
        for relay in self._relays.values():
            relay.stop()
        super().close()

    def relayed(self, k: int) -> None:
        """Put a relay between host ``k`` and the switch, which can spoil bytes."""
        bridge = ["ip", "-n", self.bridge, "link"]
        tool(*bridge, "set", f"h{k}", "nomaster")
        tool(*bridge, "add", f"s{k}", "type", "veth", "peer", "name", f"r{k}")
        tool(*bridge, "set", f"s{k}", "master", "switch", "addrgenmode", "none", "up")
        tool(*bridge, "set", f"r{k}", "addrgenmode", "none", "up")
        self._relays[k] = _Relay(self.bridge, f"h{k}", f"r{k}")

    def break_(self, k: int, how: str) -> None:
        """Break the link of host ``k``: ``link`` (no carrier), ``cut`` (it only receives), ``spoil`` or ``forge``."""
        if how == "link":
            tool("ip", "-n", self.bridge, "link", "set", f"h{k}", "down")
        elif how == "cut":  # no packet is as small as the bucket
            bucket = ["tbf", "rate", "8bit", "burst", "1", "limit", "1"]
            tool("tc", "-n", self.names[k], "qdisc", "replace", "dev", "eth0", "root", *bucket)
        else:
            self._relays[k].how = how

    def mend(self, k: int, how: str) -> None:
        """Mend the link of host ``k``."""
        if how == "link":
            tool("ip", "-n", self.bridge, "link", "set", f"h{k}", "up")
        elif how == "cut":
            tool("tc", "-n", self.names[k], "qdisc", "del", "dev", "eth0", "root")
        else:
            self._relays[k].how = ""

    def num_changed(self, k: int) -> int:
        """Return how many packets the relay of host ``k`` has changed."""
        return self._relays[k].num_changed if k in self._relays else 0


class _Relay:
    """Carries frames between two interfaces of a namespace, and changes some while ``how`` says so."""

    def __init__(self, namespace: str, *interfaces: str) -> None:
        self.how, self.num_changed, self._ends, self._random = "", 0, False, random.Random(0)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(namespace, interfaces), daemon=True)
        self._thread.start()
        self._ready.wait(10)

    def stop(self) -> None:
        """End."""
        self._ends = True
        self._thread.join()

    def _run(self, namespace: str, interfaces: tuple[str, ...]) -> None:
        enter(namespace)
        sockets = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL)) for _ in interfaces]
        for each, interface in zip(sockets, interfaces, strict=True):
            each.setsockopt(*_VNET_HEADER, 1)
            each.bind((interface, _ALL))
        there = dict(zip(sockets, reversed(sockets), strict=True))
        self._ready.set()
        while not self._ends:
            for here in select.select(sockets, [], [], 0.1)[0]:
                with contextlib.suppress(OSError):  # the interface is down, or a queue is full
                    frame, (_, _, kind, *_) = here.recvfrom(2**17)
                    if kind != socket.PACKET_OUTGOING:
                        there[here].send(self._changed(bytearray(frame)) if self.how else frame)
        for each in sockets:
            each.close()

    def _changed(self, frame: bytearray) -> bytearray:
        packet = memoryview(frame)[_HEADER + _ETHERNET :]
        if frame[_HEADER + 12 : _HEADER + 14] != b"\x08\x00" or packet[9] != socket.IPPROTO_TCP:
            return frame
        segment = packet[4 * (packet[0] & 15) : int.from_bytes(packet[2:4], "big")]
        content = segment[4 * (segment[12] >> 4) :]
        if len(content) and self._random.random() < _EACH:
            self.num_changed += 1
            content[self._random.randrange(len(content))] ^= 1 << self._random.randrange(8)
            if self.how == "spoil":
                frame[0] = 0  # nobody has filled in the sum, and the receiver will check it
        return frame
