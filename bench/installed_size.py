"""How much each extra installs, in MB, beside the library itself: python bench/installed_size.py [package ...]

It adds up the files of what is installed here, with all that it requires; what is missing is named.
"""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def sizes(requirements: list[str]) -> dict[str, float | None]:
    """Return the MB of each package that is needed, by name; None for one that is not installed."""
    found: dict[str, float | None] = {}
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        needed = waiting.pop()
        name = re.sub(r"[-_.]+", "-", needed.name).lower()
        if name in found or (needed.marker and not needed.marker.evaluate({"extra": ""})):
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            found[name] = None
            continue
        files = [Path(str(file.locate())) for file in package.files or []]
        found[name] = sum(path.stat().st_size for path in files if path.exists()) / 1e6
        waiting += [Requirement(text) for text in package.requires or []]
    return found


if __name__ == "__main__":
    base = sizes(PROJECT["dependencies"])
    print(f"{'itself':15} {sum(mb or 0 for mb in base.values()):6.0f}")
    given = {name: [name] for name in sys.argv[1:]}
    for extra, requirements in (given or PROJECT["optional-dependencies"]).items():
        if extra != "dev":
            more = {name: mb for name, mb in sizes(requirements).items() if name not in base}
            missing = [name for name, mb in more.items() if mb is None]
            total = sum(mb or 0 for mb in more.values())
            print(f"{extra:15} {total:6.0f}" + (f"  without {', '.join(missing)}" if missing else ""))
