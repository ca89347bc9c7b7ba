"""Local steps by speed: with ``deadline="adaptive"`` a slow worker takes fewer, so that nobody waits for it."""

from collections.abc import Sequence

from skerry.checkpoint.state import State

_SPEEDS = "speeds"  # of ``State.observed``: local steps per second of each worker, a mean that forgets
_TAKEN = "steps taken"  # of ``State.observed``: by each worker on its data, where rounds were not full
_NEW = 0.5  # the weight of the latest round


def steps_of_all(state: State, most: int, num_workers: int) -> list[int]:
    """Return how many local steps each worker takes in the next round: the fastest ``most``, others by their speed.

    The speeds are those that all processes have been told after earlier rounds. Who has none takes ``most``.
    """
    speeds = state.observed.get(_SPEEDS, [])
    if len(speeds) != num_workers or not any(speeds):
        return [most] * num_workers
    return [max(1, round(most * (speed or max(speeds)) / max(speeds))) for speed in speeds]


def note_speeds(state: State, steps: Sequence[int], local_s: Sequence[float], refused: Sequence[int]) -> None:
    """Add the speeds of a round to ``state``; of a worker without time, or one that may have stopped, the old stays."""
    before = state.observed.get(_SPEEDS, [])
    if len(before) != len(steps):
        before = [0.0] * len(steps)
    timed = [s > 0 and worker not in refused for worker, s in enumerate(local_s)]
    now = [n / s if use else old for n, s, use, old in zip(steps, local_s, timed, before, strict=True)]
    state.observed[_SPEEDS] = [_NEW * new + (1 - _NEW) * (old or new) for new, old in zip(now, before, strict=True)]


def steps_before(state: State, per_round: int, num_workers: int) -> list[int]:
    """Return how many steps each worker has taken on its data; other workers begin where full rounds would have led."""
    taken = state.observed.get(_TAKEN, [])
    return [int(num) for num in taken] if len(taken) == num_workers else [state.round * per_round] * num_workers


def note_steps(state: State, taken: Sequence[int], per_round: int) -> None:
    """Note after a round how many steps each worker has taken on its data."""
    state.observed.pop(_TAKEN, None)
    if any(num != state.round * per_round for num in taken):
        state.observed[_TAKEN] = [float(num) for num in taken]


def forget_workers(state: State, speeds: Sequence[float] = ()) -> None:
    """Forget what was measured of the workers, since there are others now, with ``speeds`` that they know of."""
    for name in (_SPEEDS, _TAKEN, "moves"):
        state.observed.pop(name, None)
    if any(speeds):
        state.observed[_SPEEDS] = list(speeds)
