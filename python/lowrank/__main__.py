"""The ``lowrank`` command: ``lowrank`` and ``python -m lowrank`` run it."""

import signal
import sys

from ._lowrank import command


def main() -> int:
    """Runs the command line of this process; returns its exit code."""
    # Python's handler would only take note of Ctrl-C until the command is done. What ignores it (nohup) stays.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    start = [sys.executable, "-m", "lowrank"] if __name__ == "__main__" else [sys.argv[0]]
    return command(start, ["lowrank", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
