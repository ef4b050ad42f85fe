"""Limits of a rate: the generic cell rate algorithm, one number a name, in memory.

For each name the time is kept at which it would have room for everything again. A call moves that time on by the
interval between two calls, and is let in unless that leads further ahead than a burst is long.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Rate:
    """A limit. No limit if either is 0.

    Attributes:
        per_second: Calls a second, in the long run.
        burst: Calls at once after a pause.
    """

    per_second: float
    burst: int

    def __bool__(self) -> bool:
        return self.per_second > 0 and self.burst > 0


class Standing(NamedTuple):
    """How a name stands with its limit.

    Attributes:
        allowed: The call is let in.
        limit: Calls at once after a pause.
        remaining: How many more would be let in now.
        reset: Seconds until all of them would.
        retry_after: Seconds until one more is let in; 0 if now.
    """

    allowed: bool
    limit: int
    remaining: int
    reset: float
    retry_after: float


class Gcra:
    """One limit for many names.

    Args:
        rate: The limit; not empty.
        most: Names remembered; beyond it the one that called longest ago is forgotten.
        clock: Nanoseconds, monotonic.
    """

    def __init__(self, rate: Rate, *, most: int = 100_000, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._interval = max(1, round(_SECOND / rate.per_second))
        self._tolerance = self._interval * rate.burst
        self._burst = rate.burst
        self._most = most
        self._clock = clock
        self._full: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full)

    def take(self, name: str) -> Standing:
        """Counts a call of a name, if it is let in."""
        now = self._clock()
        after = max(self._full.get(name, now), now) + self._interval
        if after - now > self._tolerance:
            return self._standing(False, after - self._interval - now)
        self._full[name] = after
        self._full.move_to_end(name)
        if len(self._full) > self._most:
            self._full.popitem(last=False)
        return self._standing(True, after - now)

    def has_room(self, name: str) -> bool:
        """Whether a call of a name would be let in. Counts nothing."""
        return max(self._full.get(name, 0) - self._clock(), 0) + self._interval <= self._tolerance

    def look(self, name: str) -> Standing:
        """How a name stands; `allowed` says whether a call would be let in. Counts nothing."""
        ahead = max(self._full.get(name, 0) - self._clock(), 0)
        return self._standing(ahead + self._interval <= self._tolerance, ahead)

    def forget(self, name: str) -> None:
        """Gives a name everything back."""
        self._full.pop(name, None)

    def _standing(self, allowed: bool, ahead: int) -> Standing:
        remaining = (self._tolerance - ahead) // self._interval
        # Before that time one more does not fit.
        wait = 0 if allowed else ahead + self._interval - self._tolerance
        return Standing(allowed, self._burst, max(0, remaining), ahead / _SECOND, wait / _SECOND)
