"""How warm a memory is: what was used lately and often is warm, and cools by itself.

`heat(now) = heat * 0.5 ** (days since it was last used / HALF_LIFE_DAYS)`, and each use adds 1. A new memory has heat 1:
its making counts as the first use. So a memory used once a day settles near 10.6, one used once and left alone is at 0.5
after a week. Nothing is thrown away for being cold. Warm memories are what becomes a candidate for a FAQ.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from memoryos_server.domain.core.behind import WrittenBehind
from memoryos_server.domain.core.faults import Stale
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import HeatState, HeatStore, Subject

log = logging.getLogger(__name__)

HALF_LIFE_DAYS = 7.0
"""The days in which heat halves."""

_DAY = 86_400.0


def initial(now: datetime) -> HeatState:
    """The state of a memory made `now`."""
    return HeatState(1.0, 0, now)


def decayed(state: HeatState, now: datetime) -> float:
    """The heat at `now`; a state from the future has not begun to cool."""
    days = max(0.0, (now - state.last_accessed).total_seconds() / _DAY)
    return state.heat * math.pow(0.5, days / HALF_LIFE_DAYS)


def touched(state: HeatState, now: datetime, times: int = 1) -> HeatState:
    """The state after `times` uses at `now`."""
    return HeatState(decayed(state, now) + times, state.count + times, max(now, state.last_accessed))


class HeatKeeper(WrittenBehind):
    """Counts uses in memory and writes them once in a while, so that reading costs no write.

    Best effort: a count is lost when the process dies within an interval, when two processes write the same memory at once,
    or when more than `capacity` memories wait while the store is down. An async context manager that writes what waits
    when it is left.

    Args:
        store: Where heat is kept.
        interval: Seconds between writes.
        capacity: The most memories that wait.
        clock: The present time.
    """

    def __init__(
        self,
        store: HeatStore,
        *,
        interval: float = 1.0,
        capacity: int = 20_000,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__("heat", interval)
        self._store = store
        self._capacity = capacity
        self._clock = clock
        self._waiting: dict[str, tuple[Subject, dict[str, int]]] = {}
        self._count = 0

    def touch(self, subject: Subject, ids: Iterable[str]) -> None:
        """Counts one use of each memory; returns at once."""
        for memory_id in ids:
            self._add(subject, memory_id, 1)

    async def write(self) -> None:
        """As `WrittenBehind.write`."""
        waiting, self._waiting, self._count = self._waiting, {}, 0
        while waiting:
            subject_id = next(iter(waiting))
            subject, counts = waiting[subject_id]
            try:
                with contextlib.suppress(Stale):  # erased meanwhile: nothing is to be kept
                    await self._write(subject, counts)
            except BaseException:
                for left, left_counts in waiting.values():
                    for memory_id, times in left_counts.items():
                        self._add(left, memory_id, times)
                raise
            del waiting[subject_id]

    async def _write(self, subject: Subject, counts: Mapping[str, int]) -> None:
        now = self._clock()
        known = await self._store.get(subject, list(counts))
        states = {id_: touched(known.get(id_) or initial(now), now, times) for id_, times in counts.items()}
        await self._store.put(subject, states)

    def _add(self, subject: Subject, memory_id: str, times: int) -> None:
        _, counts = self._waiting.setdefault(subject.id, (subject, {}))
        if memory_id not in counts:
            if self._count >= self._capacity:
                return
            self._count += 1
        counts[memory_id] = counts.get(memory_id, 0) + times
