"""Runs a command that must not outlive the process that started it.

Called by path, as `python -I -S parented.py PARENT_PID COMMAND ARGUMENT...`, and replaced by the command. It knows
nothing of what it starts. On Linux the kernel sends the command SIGTERM when the *thread* that started it ends, so
the starter must be a thread that lives as long as the command should. Elsewhere there is no such signal and the
command just starts.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> int:
    """Becomes the command; returns only if that fails."""
    parent, command = int(argv[1]), argv[2:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
            print(f"prctl: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
            return 1
    # The parent may have died before the signal was asked for; then nobody would ever send it.
    if os.getppid() != parent:
        return 1
    os.umask(0o077)
    try:
        os.execv(command[0], command)  # noqa: S606  # that there is no shell is the point; the caller names the program
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
