"""Local steps by speed: with ``deadline="adaptive"`` a slow worker takes fewer, so that nobody waits for it."""

from collections.abc import Sequence

from skerry.checkpoint.state import State

_SPEEDS = "speeds"  # of ``State.observed``: local steps per second of each worker, a mean that forgets
_NEW = 0.5  # the weight of the latest round


def steps_of_all(state: State, most: int, num_workers: int) -> list[int]:
    """Return how many local steps each worker takes in the next round: the fastest ``most``, others by their speed.

    The speeds are those that all processes have been told after earlier rounds. Without any, everybody takes ``most``.
    """
    speeds = state.observed.get(_SPEEDS, [])
    if len(speeds) != num_workers or not all(speeds):
        return [most] * num_workers
    return [max(1, round(most * speed / max(speeds))) for speed in speeds]


def note_speeds(state: State, steps: Sequence[int], local_s: Sequence[float]) -> None:
    """Add the speeds of a round to ``state``; of a worker without time, the old one stays."""
    before = state.observed.get(_SPEEDS, [])
    if len(before) != len(steps):
        before = [0.0] * len(steps)
    now = [num / s if s > 0 else old for num, s, old in zip(steps, local_s, before, strict=True)]
    state.observed[_SPEEDS] = [_NEW * new + (1 - _NEW) * (old or new) for new, old in zip(now, before, strict=True)]


def forget_workers(state: State) -> None:
    """Forget what was measured of the workers, since there are others now."""
    for name in (_SPEEDS, "moves"):
        state.observed.pop(name, None)
