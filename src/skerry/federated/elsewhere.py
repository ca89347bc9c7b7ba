"""What the server and a site have in common as runtimes: no worker of the round loop runs in their process."""

from collections.abc import Mapping

from skerry.runtimes.serial import Serial


class Elsewhere(Serial):
    """A runtime without workers.

    Attributes:
        settings: what must be the same at the server and at all sites, in words.
    """

    def __init__(self) -> None:
        super().__init__()
        self.settings: dict[str, str] = {}

    def mine(self, num_workers: int) -> list[int]:
        """Return no worker."""
        return []

    def agree(self, values: Mapping[str, str]) -> None:
        """Note the values; the sites compare them when they join."""
        self.settings |= values
