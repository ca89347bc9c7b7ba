"""TODO."""

from dataclasses import dataclass, field

from torch import Tensor

TOTALS = ("time_s", "local_s", "evaluate_s", "checkpoint_s", "bytes_due", "bytes_sent", "flop")


@dataclass(repr=False)
class State:
    """What changes from round to round beside the tensors, which a ``Store`` keeps.

    Attributes:
        round: the next round.
        trained: for each unit how many workers' rounds it was trained in, int64.
        bad_rounds: rounds in a row in which a piece was refused.
        totals: sums so far: ``time_s``, ``local_s``, ``evaluate_s``, ``checkpoint_s``, ``bytes_due``, ``bytes_sent``,
            ``flop``.
    """

    round: int
    trained: Tensor
    bad_rounds: int = 0
    totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TOTALS, 0.0))
