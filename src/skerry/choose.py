"""Names that people type: accept a known one, or raise an error that names the nearest."""

import difflib
from collections.abc import Iterable


def choose(name: str, known: Iterable[str], what: str) -> str:
    """Return ``name`` if it is one of ``known``.

    Args:
        name: what somebody typed.
        known: the names there are.
        what: what kind of thing is named, for the error ("method").

    Raises:
        ValueError: ``name`` is unknown; the message names the nearest known one, or else all of them.
    """
    known = list(known)
    if name in known:
        return name
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    hint = f"did you mean '{by_lower[near[0]]}'?" if near else f"known: {', '.join(known)}"
    raise ValueError(f"unknown {what} '{name}'; {hint}")


def did_you_mean(pattern: str, known: Iterable[str]) -> str:
    """Return "; did you mean '...'?" with the known name nearest to ``pattern``, "" if none is near."""
    near = difflib.get_close_matches(pattern, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
