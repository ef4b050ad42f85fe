"""Keeps the defense of this server and that of the others the same, off the way of calls.

While the store does not answer, the defense goes on in memory; what changed meanwhile is written when it is back. The newest
change of a place is what counts, whoever made it.
"""

from __future__ import annotations

import logging
import time
from typing import Self

from memoryos_server.domain.core.behind import WrittenBehind
from memoryos_server.domain.core.faults import BackendDown, Invalid, NotFound
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.saying import Sparing
from memoryos_server.domain.defense.guard import Guard
from memoryos_server.domain.defense.places import network_of, place_named, written
from memoryos_server.domain.ports.defense import Ban, Change, Counts, DefenseStore, Listed

_log = Sparing(logging.getLogger(__name__))

MOST_LISTED = 1_000
"""Entries of the whitelist."""

MOST_REASON = 1_000
"""Characters of an entry's reason."""

COUNT_SECONDS = 2.0
"""How far apart counts are written."""

TIDY_SECONDS = 60.0
"""How far apart bans that no longer count are looked for."""


class Defense(WrittenBehind):
    """The defense, shared. An async context manager that writes what waits when it is left.

    Args:
        guard: That of this server; its bans come here by `imposed`.
        store: What is shared.
        interval: Seconds between looks at what waits.
    """

    def __init__(self, guard: Guard, store: DefenseStore, *, interval: float = 0.2) -> None:
        super().__init__("changes of the defense", interval)
        self.guard = guard
        self._store = store
        self._pending: dict[tuple[str, str], Change] = {}
        self._stale = True
        self._changes = 0
        self._writer = uuid7()
        self._number = 0
        self._batch: Counts | None = None
        self._kept = Counts()
        self._counted_at = self._tidied_at = time.monotonic()
        store.follow(self._heard, self._missed)

    async def __aenter__(self) -> Self:
        try:
            await self._load()
        except BackendDown as fault:
            _log.warning("bans are not loaded yet: %s", fault.reason)
        return await super().__aenter__()

    def imposed(self, ban: Ban) -> None:
        """Takes a ban that the guard of this server imposed; it is written soon."""
        self._wait(Change("ban", ban.place, ban))

    async def unban(self, ip: str) -> str:
        """Ends the ban of an address, on every server; returns its place.

        Raises:
            Invalid: It is no address.
        """
        place = place_named(ip)
        await self._change(Change("ban", place, None))
        return place

    async def allow(self, ip: str, reason: str, by: str) -> str:
        """Puts an address or a network on the whitelist, on every server, and ends the bans in it; returns its name.

        Raises:
            Invalid: It is neither, the reason is too long, or the whitelist is full.
        """
        network = network_of(ip)
        name = written(network)
        if len(reason) > MOST_REASON:
            raise Invalid(f"reason must have at most {MOST_REASON:,} characters", param="reason")
        listed = self.guard.whitelist()
        if len(listed) >= MOST_LISTED and all(one.network != name for one in listed):
            raise Invalid(f"the whitelist holds at most {MOST_LISTED:,} entries; list networks instead", param="ip")
        lifted = [Change("ban", place, None) for place in self.guard.banned_in(network)]
        await self._change(Change("list", name, Listed(name, reason, self.guard.now, by)), *lifted)
        return name

    async def disallow(self, ip: str) -> str:
        """Takes an address or a network off the whitelist, on every server; returns its name.

        Raises:
            Invalid: It is neither.
            NotFound: It is not on it.
        """
        name = written(network_of(ip))
        if all(one.network != name for one in self.guard.whitelist()):
            raise NotFound(f"{name} is not on the whitelist", param="ip")
        await self._change(Change("list", name, None))
        return name

    async def counts(self) -> Counts:
        """What all servers took and stopped; of others the last seconds may be missing.

        While the store does not answer, what this server knows.
        """
        try:
            await self._count()
            self._kept = await self._store.counts()
        except BackendDown as fault:
            _log.warning("counts of other servers are not known: %s", fault.reason)
        return self._kept + self.guard.waiting + (self._batch or Counts())

    async def refresh(self) -> None:
        """Loads what others changed, if that may have been missed.

        Raises:
            BackendDown: The store does not answer.
        """
        if self._stale:
            await self._load()

    async def write(self) -> None:
        """As `WrittenBehind.write`."""
        await self.refresh()
        async with self._writing:
            for key, change in list(self._pending.items()):
                await self._store.put(change)
                if self._pending.get(key) is change:
                    del self._pending[key]
        now = time.monotonic()
        if now - self._tidied_at >= TIDY_SECONDS:
            self._tidied_at = now
            for place in self.guard.forgotten():
                self._wait(Change("ban", place, None))
                self.guard.apply(Change("ban", place, None))
        ending = self._task is not None and self._task.done()
        if ending or now - self._counted_at >= COUNT_SECONDS:
            await self._count()

    async def _count(self) -> None:
        async with self._writing:
            self._counted_at = time.monotonic()
            if self._batch is not None:
                await self._send(self._batch)
            # No more than this: what calls add while the store answers is for the next time.
            if self.guard.waiting.requests:
                self._batch = self.guard.take_counts()
                self._number += 1
                await self._send(self._batch)

    async def _send(self, batch: Counts) -> None:
        await self._store.count(self._writer, self._number, batch)
        self._kept, self._batch = self._kept + batch, None

    async def _change(self, *changes: Change) -> None:
        # Here at once, also while the store is away: whoever is to be let in again is not to wait for it.
        for change in changes:
            self.guard.apply(change)
            self._wait(change)
        try:
            await self.write()
        except BackendDown as fault:
            _log.warning("a change of the defense waits to be written: %s", fault.reason)

    def _wait(self, change: Change) -> None:
        self._pending[change.kind, change.name] = change

    def _heard(self, change: Change) -> None:
        self._changes += 1
        self._pending.pop((change.kind, change.name), None)
        self.guard.apply(change)

    def _missed(self) -> None:
        self._stale = True

    async def _load(self) -> None:
        while True:
            self._stale = False
            before = self._changes
            try:
                bans, listed = await self._store.load()
            except BaseException:
                self._stale = True
                raise
            if before == self._changes:
                break  # else what was read may be older than what was heard meanwhile
        self.guard.replace(bans, listed)
        for change in self._pending.values():
            self.guard.apply(change)
