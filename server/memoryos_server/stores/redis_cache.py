"""A bounded memory of what a store said, and how long ago."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Monotonic(Protocol):
    """A clock that never goes back."""

    def __call__(self) -> float:
        """Seconds since some moment."""


class Cache(Generic[K, V]):
    """The entries used last.

    An entry is fresh for a while; after that it is only good for the time in which the store does not answer.

    Args:
        capacity: The most entries kept.
        fresh_seconds: How long an entry needs no second look.
        clock: Seconds.
    """

    def __init__(self, capacity: int, fresh_seconds: float, clock: Monotonic = time.monotonic) -> None:
        self._entries: OrderedDict[K, tuple[V, float]] = OrderedDict()
        self._capacity = capacity
        self._fresh = fresh_seconds
        self._clock = clock
        self._drops = 0
        self._distrusts = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def generation(self) -> tuple[int, int]:
        """Changes whenever something is dropped or distrusted. Read it before asking the store; hand it to `put`."""
        return self._drops, self._distrusts

    def get(self, key: K) -> tuple[V, bool] | None:
        """An entry and whether it is fresh, or None."""
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0], self._clock() - found[1] < self._fresh

    def put(self, key: K, value: V, generation: tuple[int, int] | None = None) -> None:
        """Keeps an entry as fresh.

        What was read before something was dropped may be that thing, and is not kept; what was read before everything was
        distrusted is kept as stale.
        """
        drops, distrusts = generation or self.generation
        if drops != self._drops:
            return
        self._entries[key] = (value, self._clock() if distrusts == self._distrusts else float("-inf"))
        self._entries.move_to_end(key)
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def drop(self, key: K) -> None:
        """Forgets an entry."""
        self._drops += 1
        self._entries.pop(key, None)

    def drop_if(self, which: Callable[[V], bool]) -> None:
        """Forgets the entries of the values for which `which` is true."""
        for key in [key for key, (value, _) in self._entries.items() if which(value)]:
            self.drop(key)

    def distrust(self) -> None:
        """Makes every entry stale."""
        self._distrusts += 1
        for key, (value, _) in list(self._entries.items()):
            self._entries[key] = (value, float("-inf"))
