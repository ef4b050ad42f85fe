"""Keeps a failing provider from being asked again and again."""

from __future__ import annotations

from collections.abc import Callable

FAILURES = 3
"""So many in a row, and a deployment rests."""
REST_SECONDS = 5.0
LONGEST_REST_SECONDS = 60.0

RETRIES_PER_CALL = 0.1
SPARE_RETRIES = 20.0
"""Retries that can be saved up; while few calls come, each may be tried again."""


class Breaker:
    """Says when a deployment rests: after some failures in a row, or as long as it asked for.

    After a rest one call tries whether it answers again; the rest is longer each time that it does not.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Starts closed. `clock` gives seconds, monotonic."""
        self._clock = clock
        self._failures = 0
        self._rests = 0
        self.until = 0.0
        """When the rest ends; 0: it does not rest."""

    @property
    def rests(self) -> bool:
        """Whether others should be asked rather than this one."""
        return self._clock() < self.until

    def probes(self, seconds: float) -> bool:
        """A call goes out; whether it is the first after a rest. Then others wait for its outcome, at most so long."""
        if not self.until or self.rests:
            return False
        self.until = self._clock() + seconds
        return True

    def began(self) -> None:
        """An answer began: there is no reason to rest, though it may yet break off."""
        self.until = 0.0

    def answered(self) -> None:
        """A call was answered whole."""
        self._failures = self._rests = 0
        self.until = 0.0

    def left(self, *, probe: bool) -> None:
        """A call ended without saying anything of the deployment, as when its client left."""
        if probe:
            self.until = self._clock()

    def failed(self, wait: float | None = None, *, probe: bool = False) -> None:
        """A call failed.

        Args:
            wait: How many seconds the deployment wants to be left alone, if it said so.
            probe: Whether it was the first after a rest.
        """
        self._failures += 1
        if wait is not None or probe or self._failures >= FAILURES:
            rest = min(LONGEST_REST_SECONDS, REST_SECONDS * 2**self._rests)
            self._rests = min(self._rests + 1, 10)
            self.until = self._clock() + (rest if wait is None else min(wait, LONGEST_REST_SECONDS))


class RetryBudget:
    """Retries are a tenth of the calls at most, so that a provider in trouble does not get a multiple of its load."""

    def __init__(self) -> None:
        """Starts full."""
        self._spare = SPARE_RETRIES

    def called(self) -> None:
        """A call came."""
        self._spare = min(SPARE_RETRIES, self._spare + RETRIES_PER_CALL)

    def spend(self) -> bool:
        """Whether another try may be made; counts it."""
        if self._spare < 1:
            return False
        self._spare -= 1
        return True
