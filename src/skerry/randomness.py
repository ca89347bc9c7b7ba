"""Random generators that are pure functions of a key.

Everything random in Skerry (who holds which units, the order of the data, dropout) is drawn from a generator made
here from what it depends on, such as (seed, "data", worker, epoch). So every process derives the same draw by
itself, nothing about it is sent, and a resumed run draws what the undisturbed one would have drawn.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch


def seed_of(*key: int | str) -> int:
    """Return a 63-bit seed that depends on every part of ``key`` and on nothing else."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator seeded by ``key``, for example ``generator(seed, "deal", axis.name, round)``."""
    return torch.Generator().manual_seed(seed_of(*key))


@contextmanager
def own_random_state(seed: int | None = None, device: torch.device | None = None) -> Iterator[None]:
    """Run a block with a random state of torch of its own, and give the caller's back afterwards.

    Args:
        seed: of the state; None: the block goes on with a copy of the caller's.
        device: whose random state is the block's own, too, beside that of the CPU. Other devices are not touched.
    """
    devices = [] if device is None or device.type in ("cpu", "meta") else [device]
    with torch.random.fork_rng(devices, device_type=devices[0].type if devices else "cuda"):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all devices
            for each in devices:
                _seed(each, seed)
        yield


class OwnRandomness(Iterator[Any]):
    """Iterates with a random state of torch of its own, from ``seed`` on, which is in place only during ``next``."""

    def __init__(self, items: Iterable[Any], seed: int) -> None:
        with own_random_state(seed):
            self._items = iter(items)
            self._state = torch.get_rng_state()

    def __next__(self) -> Any:
        with own_random_state():
            torch.set_rng_state(self._state)
            item = next(self._items)
            self._state = torch.get_rng_state()
        return item


def _seed(device: torch.device, seed: int) -> None:
    module = torch.get_device_module(device)
    with module.device(device) if hasattr(module, "device") else nullcontext():
        module.manual_seed(seed)
