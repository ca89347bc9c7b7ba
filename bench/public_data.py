"""Compare what `skerry data fetch` makes of Debian's packages with the benchmarks' frozen files. Needs apt's network.

    SKERRY_DATA=... python bench/public_data.py      # half a minute

The frozen `debian_depends.npz` is of one day's package lists; with others the sizes differ a little.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

from skerry.experiments.datasets import fetch
from skerry.experiments.datasets.archives import MADE


def main() -> None:
    """Fetch each into a folder of its own, and print how it compares."""
    for name in ("wordnet", "debian-depends"):
        with tempfile.TemporaryDirectory() as folder:
            made = np.load(fetch(name, target=Path(folder), say=lambda line: None) / MADE[name])
            frozen = np.load(Path(os.environ["SKERRY_DATA"]).expanduser() / MADE[name])
            same = [np.array_equal(made[key], frozen[key]) for key in frozen.files]
            sizes = {key: (made[key].shape, frozen[key].shape) for key in frozen.files}
        print(f"{name}: {sum(same)} of {len(same)} arrays equal{'' if all(same) else f', shapes {sizes}'}")


if __name__ == "__main__":
    main()
