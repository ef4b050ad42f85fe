"""Reads all that was ever recorded, archive and chains and outboxes, and says where it is not as it was written.

Each chain is added up again from its first event. What it comes to must be what its head says, and must hold what the signed
head, which is kept apart, says of it. Nothing is changed by it. It runs beside the sequencer: heads are read before the
links, and only what a head covers is looked at.
"""

from __future__ import annotations

import asyncio
import hashlib
from array import array
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from memoryos_server.stores.archive import Stored, stored_batches
from memoryos_server.stores.chain import HASH_BYTES, Link, beginning
from memoryos_server.stores.heads import HeadBrokenError, Signed, SignedHeads
from memoryos_server.stores.redis_audit import RedisAudit, Stranger, parsed
from memoryos_server.stores.redis_chain import Head, RedisChain

_MOST = 20
"""So many problems of one tenant are told; one change often makes two."""

_MOST_LOOSE = 200
"""So many of what belongs to no chain."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it was written.

    Attributes:
        tenant_id: Whose chain; "" if that cannot be told.
        number: Which event of the chain; 0 for none in particular.
        place: The key or file it lies in.
        what: What is wrong, in words.
    """

    tenant_id: str
    number: int
    place: str
    what: str


@dataclass(slots=True)
class _Walk:
    """How far a chain was added up."""

    tenant_id: str
    count: int = 0
    hash: bytes = b""
    archived: int = 0
    signed: Signed | None = None
    signed_holds: bool = False
    ids: array[int] = field(default_factory=lambda: array("Q"))
    numbers: array[int] = field(default_factory=lambda: array("Q"))
    recent: deque[tuple[int, bytes]] = field(default_factory=lambda: deque(maxlen=1024))
    problems: list[Problem] = field(default_factory=list)

    def say(self, number: int, place: str, what: str) -> None:
        """Notes a problem."""
        if len(self.problems) < _MOST:
            self.problems.append(Problem(self.tenant_id, number, place, what))

    def step(self, link: Link, place: str) -> None:
        """Adds an event up; from behind a gap it goes on with what stands there."""
        if link.number <= self.count:
            if (link.number, link.hash) not in self.recent:  # what is archived and was not removed yet is there twice
                self.say(self.count + 1, place, f"an entry that was not chained stands after event {self.count}")
            return
        if link.number > self.count + 1:
            missing = str(self.count + 1) if link.number == self.count + 2 else f"{self.count + 1}..{link.number - 1}"
            self.say(self.count + 1, place, f"events {missing} are missing")
        elif not link.follows(self.hash):
            self.say(link.number, place, f"event {link.number} was changed, or exchanged")
        elif (record := parsed(link.event)) is None:
            self.say(link.number, place, f"event {link.number} is no record of an event, and is shown nowhere")
        else:
            self.ids.append(int.from_bytes(hashlib.blake2b(record["id"].encode(), digest_size=8).digest()))
            self.numbers.append(link.number)
        self.count, self.hash = link.number, link.hash
        self.recent.append((link.number, link.hash))
        if self.signed is not None and self.signed.count == self.count:
            self.signed_holds = self.signed.hash == self.hash

    def find_copies(self, place: str) -> None:
        """Notes events that stand in the chain twice. Sixteen bytes of memory an event."""
        ids, numbers = np.array(self.ids, np.uint64), np.array(self.numbers, np.uint64)
        order = np.argsort(ids, kind="stable")
        for at in np.flatnonzero(ids[order][1:] == ids[order][:-1])[:_MOST]:
            first, copy = int(numbers[order[at]]), int(numbers[order[at + 1]])
            self.say(copy, place, f"event {copy} is event {first} once more: it was put in again")


class Verifier:
    """Verifies the chains of one store.

    Args:
        chain: The chains.
        audit: The outboxes.
        heads: The signed heads.
        archive: The directory of archive files.
        tenant_id: Only this tenant's; None: all.
    """

    def __init__(
        self, chain: RedisChain, audit: RedisAudit, heads: SignedHeads, archive: Path, tenant_id: str | None = None
    ) -> None:
        self._chain = chain
        self._audit = audit
        self._heads = heads
        self._archive = archive
        self._only = tenant_id
        self._walks: dict[str, _Walk] = {}
        self._read: dict[str, Head] = {}
        self._loose: list[Problem] = []

    async def run(self) -> AsyncIterator[dict[str, Any]]:
        """Every problem, and at the end what was read.

        Raises:
            OSError: A file cannot be read.
            BackendDown: The store does not answer.
        """
        # What was signed first is in what is read afterwards.
        for tenant in await asyncio.to_thread(self._heads.tenants):
            await self._walk(tenant)
        for tenant in await self._chain.tenants():
            if await self._walk(tenant) and not await self._chain.is_listed(tenant):
                self._walks[tenant].say(0, self._chain.key(tenant), "it is listed in a place that is not its own")
        if self._only is not None:
            await self._walk(self._only)
        await self._read_archive()
        waiting = 0
        async for tenant, taken in self._audit.outbox():
            walk = await self._walk(tenant)
            waiting += walk is not None and not self._read[tenant].has(taken)
        async for stranger in self._audit.strangers():
            if self._only in (None, stranger.tenant_id) or not stranger.tenant_id:
                self._name(stranger)
        for tenant, walk in sorted(self._walks.items()):
            await self._read_chain(walk, self._read[tenant])
        problems = self._loose + [problem for _, walk in sorted(self._walks.items()) for problem in walk.problems]
        for one in problems:
            yield {"tenant_id": one.tenant_id, "number": one.number, "place": one.place, "problem": one.what}
        walks = [walk for walk in self._walks.values() if walk.count]
        yield {
            "tenants": len(walks),
            "events": sum(walk.count for walk in walks),
            "archived": sum(walk.archived for walk in walks),
            "waiting": waiting,
            "unsigned": sorted(walk.tenant_id for walk in walks if walk.signed is None),
            "problems": len(problems),
        }

    def _name(self, stranger: Stranger) -> None:
        if len(self._loose) >= _MOST_LOOSE:
            return
        what = (
            f"entry {stranger.stood} of the outbox was changed or put in, for no server wrote it so: it is not chained"
        )
        self._loose.append(Problem(stranger.tenant_id, 0, f"{stranger.key} entry {stranger.entry}", what))

    async def _walk(self, tenant: str) -> _Walk | None:
        """How far a tenant's chain was read; None if it is none that is looked at."""
        if self._only not in (None, tenant):
            return None
        if (walk := self._walks.get(tenant)) is None:
            walk = self._walks[tenant] = _Walk(tenant, hash=beginning(tenant))
            try:
                walk.signed = await asyncio.to_thread(self._heads.read, tenant)
            except HeadBrokenError as error:
                walk.say(0, str(self._heads.path(tenant)), str(error))
            self._read[tenant] = await self._chain.head(tenant)
        return walk

    async def _read_archive(self) -> None:
        batches = stored_batches(self._archive)
        while (stored := await asyncio.to_thread(next, batches, None)) is not None:
            place = f"{stored.path} at byte {stored.at}"
            tenants = sorted({tenant for tenant, _ in _links(stored)})
            if not stored.intact and self._only is None:
                whose = ", ".join(tenants)
                self._loose.append(Problem(whose, 0, place, "what stands here is not what was written"))
            for tenant, link in _links(stored):
                if (walk := await self._walk(tenant)) is None:
                    continue
                if link is None:
                    walk.say(walk.count + 1, place, f"the record after event {walk.count} is damaged")
                else:
                    walk.step(link, place)
                    walk.archived = walk.count

    async def _read_chain(self, walk: _Walk, head: Head) -> None:
        key = self._chain.key(walk.tenant_id)
        if not head.intact:
            walk.say(0, key, "its head is not as it was written")
        if head.archived > walk.archived:
            walk.say(walk.archived + 1, str(self._archive), f"events up to {head.archived} should be archived")
        if head.count and not await self._chain.is_listed(walk.tenant_id):
            walk.say(0, key, "it is not listed among the chains of its partition")
        oldest = None
        async for link in self._chain.forth(walk.tenant_id, max(head.count, walk.archived)):
            oldest = oldest or link.number
            walk.step(link, f"{key} entry {link.number}-0")
        if (oldest or head.count + 1) != head.archived + 1:
            walk.say(head.archived + 1, key, f"its head says {head.archived} are archived, but it begins otherwise")
        if walk.count != head.count:
            walk.say(min(walk.count, head.count) + 1, key, f"it has {walk.count} events, its head says {head.count}")
        elif walk.hash != head.hash:
            walk.say(walk.count, key, "it does not add up to what its head says")
        for rogue in await self._chain.back(walk.tenant_id, most=1):
            # Behind the head that was read there may be what was added since, with a head of its own.
            if rogue.number > (await self._chain.head(walk.tenant_id)).count:
                walk.say(rogue.number, key, f"entry {rogue.number} stands behind its head")
        walk.find_copies(key)
        if walk.signed is not None and not walk.signed_holds:
            said = f"{walk.signed.count} events at {walk.signed.at}"
            if walk.count < walk.signed.count:
                walk.say(walk.count + 1, key, f"it was cut off, or is an older state: its signed head says {said}")
            else:
                walk.say(walk.signed.count, key, f"it is not the chain of which its signed head says {said}")


def _links(stored: Stored) -> list[tuple[str, Link | None]]:
    """The records of a batch and whose they are; None for one that is no record."""
    found: list[tuple[str, Link | None]] = []
    for record in stored.batch["records"] if stored.batch is not None else ():
        match record:
            case [
                str() as tenant,
                int() as number,
                str() as source,
                bytes() as event,
                bytes() as who,
                bytes() as added,
            ]:
                whole = number > 0 and len(added) == HASH_BYTES
                found.append((tenant, Link(number, source, event, who, added) if whole else None))
            case [str() as tenant, *_]:
                found.append((tenant, None))
            case _:
                found.append(("", None))
    return found
