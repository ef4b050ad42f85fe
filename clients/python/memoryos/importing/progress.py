"""How far an import is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

_BAR_SECONDS, _LINE_SECONDS = 0.2, 10.0
_WIDTH = 24


class Progress:
    """Shows how far it is, often enough and not more.

    Args:
        out: Where to.
        clock: Seconds of a clock that only goes forward.
    """

    def __init__(self, out: TextIO = sys.stderr, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._bar = out.isatty()
        self._began = clock()
        # Somebody at a terminal wants to see at once that it runs; a log needs no line on an import of a second.
        self._next = self._began + (0.0 if self._bar else _LINE_SECONDS)

    def show(self, share: float, done: int, failed: int) -> None:
        """Shows the present state if it is time to.

        Args:
            share: The part of the file that is read, 0..1.
            done: Items sent.
            failed: Items that could not be.
        """
        now = self._clock()
        if now >= self._next:
            self._next = now + (_BAR_SECONDS if self._bar else _LINE_SECONDS)
            self._write(share, done, failed, now)

    def end(self, share: float, done: int, failed: int) -> None:
        """Shows the last state of a bar and leaves its line."""
        if self._bar:
            self._write(share, done, failed, self._clock())
            self._out.write("\n")
            self._out.flush()

    def _write(self, share: float, done: int, failed: int, now: float) -> None:
        share = min(max(share, 0.0), 1.0)
        spent = max(now - self._began, 1e-9)
        left = f", {_duration(spent / share - spent)} left" if 0 < share < 1 else ""
        bad = f", {failed:,} failed" if failed else ""
        text = f"{share:4.0%}  {done:,} sent{bad}, {done / spent:,.0f}/s{left}"
        if self._bar:
            filled = int(share * _WIDTH)
            self._out.write(f"\r[{'#' * filled}{'.' * (_WIDTH - filled)}] {text}\x1b[K")
        else:
            self._out.write(f"{text.strip()}\n")
        self._out.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
