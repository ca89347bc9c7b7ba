"""The ``skerry`` command, also started as ``python -m skerry`` and by torchrun."""

import os
import sys
from importlib.util import find_spec

from skerry.experiments.cli.interrupt import code_and_line, end_at_sigterm
from skerry.runtimes.distributed.meeting import adopt_srun, num_started, tell_before_joining

EXTRA = ("click", "jinja2", "matplotlib", "rich")
"""Packages of the extra ``experiments``, without which no command runs."""


def entry() -> None:
    """Run the command given by ``sys.argv``, print its error if there is one, and end the process."""
    end_at_sigterm()
    if num_started() > 1:
        adopt_srun()
    try:
        code, message = call(sys.argv[1:])
    except KeyboardInterrupt as error:  # while it imports
        code, message = code_and_line(error)
    if message:
        print(f"skerry: {message}", file=sys.stderr, flush=True)
    if code and "RANK" in os.environ:
        tell_before_joining(message.removeprefix("error: "))
    sys.stdout.flush()
    # Not sys.exit: in a process group that lost a member, gloo's destructors may wait for it.
    os._exit(code)


def call(arguments: list[str]) -> tuple[int, str]:
    """Run one command.

    Args:
        arguments: what follows ``skerry`` on the command line.

    Returns:
        The exit code, and one line about an error that the user can fix (empty if there is none).

    Example:
        >>> call(["train", "digits-mlp"])
        (2, "error: Missing option '--out'.")
    """
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        return 1, f"error: {', '.join(missing)} not installed; run: pip install 'skerry[experiments]'"
    from skerry.experiments.cli.commands import run

    return run(arguments)
