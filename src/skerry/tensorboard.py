"""TensorBoard events of a run (extra ``tensorboard``)."""

from pathlib import Path

from skerry.train import Record, State


class Events:
    """Writes each round's figures to ``folder``; ``on_round`` fits ``skerry.train``.

    Raises:
        ValueError: the extra is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "--tensorboard: tensorboard is not installed; pip install 'skerry[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder))  # type: ignore[no-untyped-call]

    def on_round(self, record: Record, state: State) -> None:
        """Write the figures of a round."""
        scalars = {"loss/train": record.train_loss, "units/covered": record.units_covered}
        scalars |= {f"cost/{name}": record.totals[name] for name in ("bytes_due", "bytes_sent", "flop", "time_s")}
        if record.score is not None:
            scalars |= {"loss/test": record.score.loss, "accuracy/test": record.score.accuracy}
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, record.round)  # type: ignore[no-untyped-call]
        self._writer.flush()  # type: ignore[no-untyped-call]
