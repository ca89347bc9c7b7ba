"""Names that people type: the known one, or an error that tells the nearest."""

import difflib
from collections.abc import Iterable


def choose(name: str, known: Iterable[str], what: str) -> str:
    """Return ``name`` if it is one of ``known``; otherwise raise ValueError that names the nearest."""
    known = list(known)
    if name in known:
        return name
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    hint = f"did you mean '{by_lower[near[0]]}'?" if near else f"known: {', '.join(known)}"
    raise ValueError(f"unknown {what} '{name}'; {hint}")
