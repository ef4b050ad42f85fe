"""The work of one partition: its open entries in order, then the consolidation of its subjects.

Per subject strictly in order; when one subject's entry fails, its later ones wait and other subjects go on. Tenants take
turns, and so do the subjects of each (`fairness`). An entry ends only after a flush that covers everything that was written
for it, and in the same write that proves the partition is still this process's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from memoryos_server.domain.core.consent import WITHDRAWN
from memoryos_server.domain.core.faultpoints import reach
from memoryos_server.domain.core.faults import Stale
from memoryos_server.domain.memory import trouble
from memoryos_server.domain.memory.consolidating import Consolidations
from memoryos_server.domain.memory.fairness import Place, Waiting
from memoryos_server.domain.memory.fencing import fenced
from memoryos_server.domain.memory.model import Verdict
from memoryos_server.domain.memory.trouble import Blocked
from memoryos_server.domain.memory.worktools import Tools
from memoryos_server.domain.ports import Entry, Lease, Settlement, Turn

log = logging.getLogger(__name__)

BATCH = 64
SHARED_BATCH = 16
"""How many entries are worked on at a stretch while other tenants wait."""
LOOK_AHEAD = 1024
"""How far a round looks on for entries of those who would else wait behind a long backlog."""
_STILL_NEW = 0.05
"""Seconds for which an entry that was read need not be read again: afterwards it may have been removed or erased."""
MOST_UNSETTLED = 1024
GATHER_SECONDS = 0.1
"""How long entries are waited for that can be worked on together with one that came, unless somebody waits for it."""

SUSPICIOUS = 2
"""An entry found open at this many starts is worked on alone: one of those beside it may be what ended the process."""


class Partition:
    """One partition's work in this process.

    Args:
        number: 0..255.
        tools: What it works with.
    """

    def __init__(self, number: int, tools: Tools) -> None:
        self.number = number
        self._tools = tools
        self._lease: Lease | None = None
        self._renewed = 0.0
        self._woken = asyncio.Event()
        self._after = ""
        self._anew = False
        self._places = Waiting()
        self._read: dict[str, Entry] = {}
        self._looked = 0.0
        self._done: dict[str, tuple[int, Settlement]] = {}
        self._blocked: dict[str, Blocked] = {}
        self._ending: asyncio.Task[None] | None = None
        self._left: set[str] = set()
        self._consolidating: asyncio.Task[None] | None = None
        self._consolidations = Consolidations(number, tools, self._held, self.confirm)
        self._waiting = False

    def wake(self) -> None:
        """Says that there is something new."""
        self._woken.set()

    @property
    def foreign(self) -> bool:
        """Whether another process had the partition when it was last asked for."""
        return self._lease is None and self._renewed > 0

    @property
    def has_news(self) -> bool:
        """Whether it was told of something since it last looked."""
        return self._woken.is_set()

    @property
    def only_waits(self) -> bool:
        """Whether all that is left are entries that failed and are not due."""
        return self._waiting

    async def claim(self) -> bool:
        """Takes or renews the lease; whether the partition is this process's.

        Raises:
            BackendDown: The store does not answer.
        """
        now = asyncio.get_running_loop().time()
        if self._lease is not None and now - self._renewed < self._tools.lease_seconds / 3:
            return True
        before = self._lease
        self._lease = await self._tools.queue.claim(self.number, self._tools.lease_seconds)
        self._renewed = now
        if self._lease is None or (before is not None and self._lease.token != before.token):
            self.reset()
        if self._lease is None:
            self._tools.progress.leave(self.number)
        return self._lease is not None

    async def confirm(self) -> None:
        """Returns if the partition is this process's for two thirds of a lease to come; renews the lease if need be.

        Raises:
            Stale: Somebody else has it, or had it meanwhile.
            BackendDown: The store does not answer.
        """
        before = self._held()
        if not await self.claim() or self._held() != before:
            raise Stale("Another process has the partition now")

    async def release(self) -> None:
        """Gives the lease back."""
        if self._lease is not None:
            lease, self._lease = self._lease, None
            await self._tools.queue.release(lease)

    def reset(self) -> None:
        """Starts over from the first open entry: what was done here may be lost."""
        self._anew = True
        self._done.clear()
        self._woken.set()

    async def recover(self) -> None:
        """Takes up what another process, or an earlier life of this one, left open: counts it, then indexes it.

        Raises:
            BackendDown: A store does not answer.
        """
        claimed = await self.claim()
        batch: list[Entry] = []
        async for entry in self._tools.queue.open_entries(self.number):
            batch.append(entry)
            if len(batch) == BATCH:
                await self._recover(batch, claimed)
                batch = []
        await self._recover(batch, claimed)

    async def work(self) -> None:
        """Works until nothing is left that can be done now.

        Raises:
            BackendDown: A store does not answer; what was not ended is done again.
        """
        try:
            while await self.claim():
                await self._gather()
                self._woken.clear()
                more = await self._round()
                # Before what may be a long row of further rounds: entries end while others begin.
                self._take_results()
                if self._ending is None and self._done:
                    self._ending = asyncio.create_task(self._end())
                if self._consolidating is None and (due := await self._consolidations.due()):
                    self._consolidating = asyncio.create_task(self._consolidations.run(due))
                if more:
                    continue
                if not (self._ending or self._consolidating or self._blocked or self._woken.is_set()):
                    return
                await self._pause()
        except Stale as stale:
            log.info("partition %d is taken up anew: %s", self.number, stale.message)
            self._lease = None
        finally:
            ending = [task for task in (self._ending, self._consolidating) if task]
            self._ending = self._consolidating = None
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            self._done.clear()
            self._anew = True
            self._places.clear()
            self._consolidations.news()

    async def _gather(self) -> None:
        """Lets entries that come close together be one batch, which costs little more than one of them by itself."""
        hurry = self._tools.progress.hurry(self.number)
        if not len(self._places):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GATHER_SECONDS):
                    await hurry.wait()
        hurry.clear()

    def _held(self) -> Lease:
        if self._lease is None:
            raise Stale("The partition is not this process's any more")
        return self._lease

    async def _pause(self) -> None:
        """Waits until there is something to do."""
        loop = asyncio.get_running_loop()
        woken = asyncio.create_task(self._woken.wait())
        waits = [task for task in (woken, self._ending, self._consolidating) if task]
        next_try = min([b.until for b in self._blocked.values()], default=loop.time() + self._tools.lease_seconds)
        limit = min(next_try - loop.time(), self._tools.lease_seconds / 3)
        self._waiting = not (self._done or self._woken.is_set())
        try:
            await asyncio.wait(waits, timeout=max(limit, 0.01), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waiting = False
            woken.cancel()
        self._take_results()

    def _take_results(self) -> None:
        """Looks at what ended beside the rounds.

        Raises:
            BackendDown, Stale: It failed.
        """
        if self._ending and self._ending.done():
            ended, self._ending = self._ending, None
            ended.result()
        if self._consolidating and self._consolidating.done():
            ended, self._consolidating = self._consolidating, None
            ended.result()

    async def _round(self) -> bool:
        """Does the next entries; whether there were any."""
        loop = asyncio.get_running_loop()
        if len(self._done) >= MOST_UNSETTLED:
            return False
        under_way = self._tools.progress.under_way(self.number)
        await self._look()
        now = loop.time()
        waiting = {s for s, blocked in self._blocked.items() if blocked.until > now}
        if self._anew:
            return True  # while this was read: it begins again
        if not self._places.tenants(waiting):
            for subject_id in [s for s in self._blocked if s not in waiting]:
                del self._blocked[subject_id]  # its entry is gone: erased, or settled elsewhere
            for subject_id, entry_id in under_way:
                self._tools.progress.end(subject_id, entry_id)  # seen by now, or gone
            return False
        async with self._tools.slots.turn(lambda: self._places.tenants(waiting), self._news) as tenant:
            if self._anew or not tenant:
                return True
            alone = self._places.tenants(waiting) == [tenant] and not self._tools.slots.shared(tenant)
            most = BATCH if alone else SHARED_BATCH
            places = self._places.take(most, first=tenant, without=waiting)
            read = self._read if loop.time() - self._looked <= _STILL_NEW else {}
            if missing := [place.id for place in places if place.id not in read]:
                read |= {entry.id: entry async for entry in self._tools.queue.entries(self.number, missing)}
            batch = [read[place.id] for place in places if place.id in read]
            for place in places:
                if place.id not in read:
                    self._tools.progress.end(place.subject.id, place.id)  # removed, erased, or settled elsewhere
            await self._handle(await self._counted(batch))
            # What failed, and what comes behind it, waits in its place.
            self._places.put_back([p for p in places if p.id in read and p.id in self._left])
            self._left.clear()
        return True

    async def _news(self) -> None:
        """Waits until it is told of something new, and finds out whose it is."""
        await self._woken.wait()
        self._woken.clear()
        await self._look()

    async def _look(self) -> None:
        """Finds out who waits behind what is known, and keeps the first of the new entries for as long as they are new."""
        if self._anew:
            self._anew = False
            self._after = ""
            self._places.clear()
        loop = asyncio.get_running_loop()
        now = loop.time()
        read = self._read = {}
        seen = 0
        async with self._tools.looks:
            async for entry in self._tools.queue.open_entries(self.number, self._after):
                if self._anew:
                    break
                self._after = entry.id
                if entry.id in self._done:
                    continue
                self._places.add(Place(entry.id, entry.subject))
                if len(read) < BATCH:
                    read[entry.id] = entry
                if (blocked := self._blocked.get(entry.subject.id)) and blocked.until > now:
                    self._tools.progress.end(entry.subject.id, entry.id)
                seen += 1
                if seen == LOOK_AHEAD:
                    break
        self._looked = loop.time()

    async def _counted(self, batch: Sequence[Entry]) -> list[Entry]:
        """The entries still to be worked on; those that a process may have died of are counted, or given up."""
        found = [entry for entry in batch if not self._tools.indexing.knows(entry.id)]
        if not found:
            return list(batch)
        await self._tools.indexing.incarnation(found[0].subject)  # nobody dies of an entry while the engine is down
        over = {entry.id for entry in found if entry.attempts >= trouble.MOST_ATTEMPTS}
        for entry in found:
            if entry.id in over:
                await self._give_up(entry, "it was under way each time the process ended")
        plain = [entry for entry in found if entry.attempts < SUSPICIOUS]
        if plain:
            await self._tools.queue.started(self._held(), plain)
            for entry in plain:
                self._tools.indexing.know(entry.id)
        return [entry for entry in batch if entry.id not in over]

    async def _recover(self, batch: Sequence[Entry], claimed: bool) -> None:
        """Indexes entries, as far as they can be: what cannot, and what is suspicious, is left to `work`."""
        # Whoever has the partition may be dead: what it acknowledged must be searchable here all the same.
        found = await self._counted(batch) if claimed else batch
        entries = [e for e in found if self._tools.indexing.knows(e.id) or e.attempts < SUSPICIOUS]
        try:
            await self._tools.indexing.ensure(entries, quickly=True)
        except Exception as error:
            if trouble.is_outage(error):
                raise
            log.warning("entries found open could not be indexed together: %s", trouble.reason_of(error))

    async def _alone(self, entry: Entry) -> None:
        """Works on a suspicious entry to its end, with no other such entry under way and nothing left open before it."""
        async with self._tools.alone:
            await self._settle_now()
            await self._tools.queue.started(self._held(), [entry])
            self._tools.indexing.know(entry.id)
            await self._handle([entry])
            await self._settle_now()

    async def _handle(self, batch: Sequence[Entry]) -> None:
        suspicious = [entry for entry in batch if not self._tools.indexing.knows(entry.id)]
        if suspicious:
            at = batch.index(suspicious[0])
            await self._handle(batch[:at])
            await self._alone(batch[at])
            await self._handle(batch[at + 1 :])
            return
        if not batch:
            return
        try:
            await self._process(batch)
        except Exception as error:
            if trouble.is_outage(error) or isinstance(error, Stale):
                raise
            await self._one_by_one(batch)

    async def _one_by_one(self, batch: Sequence[Entry]) -> None:
        """Finds out which entry of a batch fails; the others are done."""
        stopped: set[str] = set()
        for entry in batch:
            if entry.id in self._done:
                continue
            if entry.subject.id in stopped:
                self._left.add(entry.id)
                self._tools.progress.end(entry.subject.id, entry.id)
                continue
            try:
                await self._process([entry])
            except Exception as error:
                if trouble.is_outage(error) or isinstance(error, Stale):
                    raise
                if not await self._failed(entry, error):
                    stopped.add(entry.subject.id)

    async def _process(self, entries: Sequence[Entry]) -> None:
        tools = self._tools
        await tools.indexing.ensure(entries)
        await self._swept(entries)
        took = {entry.id: tools.indexing.written(entry.id) for entry in entries}
        verdicts = await self._digested(entries)
        for entry in entries:
            verdict = verdicts.get(entry.id, Verdict())
            incarnation = took[entry.id]
            if incarnation is None:
                self._anew = True  # the engine was restarted this moment: it is read again
                continue
            settlement = Settlement(entry, verdict.state, verdict.reason, verdict.related, verdict.fresh)
            self._done[entry.id] = (incarnation, settlement)
            self._blocked.pop(entry.subject.id, None)
            tools.progress.end(entry.subject.id, entry.id)
        tools.successes += len(entries)

    async def _swept(self, entries: Sequence[Entry]) -> None:
        """Takes what changes removed out of what is derived, in case it was made while another process removed it."""
        if self._tools.sweep is None:
            return
        for entry in entries:
            if entry.change and entry.change.events:
                locks, subject = self._tools.locks, entry.subject
                async with locks.digest(subject.id), locks.segments(subject.id):
                    with fenced(self.confirm):
                        await self._tools.sweep(subject, list(entry.change.events))

    async def _digested(self, entries: Sequence[Entry]) -> dict[str, Verdict]:
        tools = self._tools
        verdicts: dict[str, Verdict] = {}
        by_subject: dict[str, list[tuple[Entry, Turn]]] = {}
        for entry in entries:
            if entry.turn:
                by_subject.setdefault(entry.subject.id, []).append((entry, entry.turn))
        for pairs in by_subject.values():
            subject = pairs[0][0].subject
            async with tools.locks.digest(subject.id):
                kept = []
                for entry, turn in pairs:
                    if tools.indexing.is_removed(entry):
                        verdicts[entry.id] = Verdict("rejected", "deleted", fresh=False)
                    elif tools.indexing.is_withheld(entry):
                        verdicts[entry.id] = Verdict("rejected", WITHDRAWN, fresh=False)
                    else:
                        kept.append((entry, turn))
                if kept and tools.digest:
                    with fenced(self.confirm):
                        found = await tools.digest.digest(subject, [turn for _, turn in kept])
                    verdicts |= {entry.id: v for (entry, _), v in zip(kept, found, strict=True)}
            reach("digest.done")
        return verdicts

    async def _failed(self, entry: Entry, error: Exception) -> bool:
        """Counts a failure; whether the entry was given up, so that the next of its subject may go on."""
        tools = self._tools
        before = self._blocked.get(entry.subject.id)
        tries = (before.tries if before else entry.attempts) + 1
        reason = trouble.reason_of(error)
        tools.progress.end(entry.subject.id, entry.id)
        if trouble.counts(error, before, tools.successes):
            if entry.attempts + 1 >= trouble.MOST_ATTEMPTS:
                await self._give_up(entry, reason)
                return True
            await tools.queue.failed(self._held(), entry, reason, give_up=False)
        log.warning("entry %s failed, try %d: %s", entry.id, tries, reason, exc_info=error if tries == 1 else None)
        until = asyncio.get_running_loop().time() + trouble.pause(tries - 1, tools.backoff)
        self._left.add(entry.id)
        for place in self._places.of(entry.subject):
            tools.progress.end(entry.subject.id, place.id)
        self._blocked[entry.subject.id] = Blocked(until, tries, tools.successes)
        return False

    async def _give_up(self, entry: Entry, reason: str) -> None:
        log.error("entry %s is a dead letter now: %s", entry.id, reason)
        await self._tools.queue.failed(self._held(), entry, reason, give_up=True)
        if entry.turn:
            self._tools.counts.ended("dead_letter")
        reach("dead_letter.moved")
        self._blocked.pop(entry.subject.id, None)
        self._tools.progress.end(entry.subject.id, entry.id)
        self._tools.indexing.forget(entry.id)

    async def _end(self) -> None:
        """Ends what is done, once a flush has made it durable."""
        chosen = list(self._done)
        await self._settle(await self._tools.flusher.covering(), chosen)

    async def _settle_now(self) -> None:
        if chosen := list(self._done):
            await self._settle(await self._tools.flusher.now(), chosen)

    async def _settle(self, incarnation: int, ids: Sequence[str]) -> None:
        chosen = [name for name in ids if name in self._done]
        lost = {self._done[name][1].entry.subject.id for name in chosen if self._done[name][0] != incarnation}
        # Nothing of a subject ends before what came earlier: a removal must still be open when what it removes is redone.
        durable = [one for one in (self._done[name][1] for name in chosen) if one.entry.subject.id not in lost]
        if durable:
            reach("settle.before")
            await self._tools.queue.settle(self._held(), durable)
            reach("settle.after")
            for one in durable:
                if one.entry.turn:
                    self._tools.counts.ended(one.state)
            self._consolidations.news()
        for settlement in durable:
            self._done.pop(settlement.entry.id, None)
            self._tools.indexing.forget(settlement.entry.id)
        if len(durable) < len(chosen):
            # The engine was restarted in between: those writes may be gone, their entries are still open.
            for name in chosen:
                self._tools.indexing.forget(name)
            self.reset()
