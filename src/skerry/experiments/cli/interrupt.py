"""Ctrl-C and SIGTERM: both end a command with one line, which says what of a run is kept."""

import signal
from types import FrameType
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM, as it ends a command."""


def end_at_sigterm() -> None:
    """Let SIGTERM end this process as ctrl-c does."""
    signal.signal(signal.SIGTERM, _terminate)


def code_and_line(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the line for an interrupt, with its notes."""
    code, what = (143, "terminated") if isinstance(error, Terminated) else (130, "interrupted")
    return code, " ".join([what, *getattr(error, "__notes__", [])])


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated
