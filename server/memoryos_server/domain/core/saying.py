"""Saying what lasts now and then: a store that is down is not to write a line for each request."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

EVERY_SECONDS = 30.0
"""How far apart equal lines are."""

MAX_LINES = 200
"""So many different lines are remembered; then the one that was said the longest ago is forgotten."""


class Sparing:
    """A logger that says equal lines only now and then, and how many it left out in between.

    Args:
        log: Where lines go.
        every: Seconds between two equal lines.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, log: logging.Logger, every: float = EVERY_SECONDS, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._every = every
        self._clock = clock
        self._said: OrderedDict[tuple[int, str], tuple[float, int]] = OrderedDict()

    def warning(self, text: str, *values: object) -> None:
        """A line of that level; `text` takes `values` as `logging` does."""
        self._say(logging.WARNING, text % values if values else text)

    def error(self, text: str, *values: object) -> None:
        """As `warning`, for what somebody has to mend."""
        self._say(logging.ERROR, text % values if values else text)

    def _say(self, level: int, line: str) -> None:
        now = self._clock()
        said_at, left_out = self._said.get((level, line), (float("-inf"), 0))
        if now - said_at < self._every:
            self._said[level, line] = said_at, left_out + 1
            return
        self._said[level, line] = now, 0
        self._said.move_to_end((level, line))
        if len(self._said) > MAX_LINES:
            self._said.popitem(last=False)
        more = f" ({left_out} times more since this was last said)" if left_out else ""
        self._log.log(level, "%s%s", line, more)
