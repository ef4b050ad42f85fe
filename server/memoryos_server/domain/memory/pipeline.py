"""From an accepted turn to a searchable one, without ever losing or doubling it.

Acceptance is one durable write; it leaves an open queue entry. Indexing follows and may be repeated: ids follow from the
event, and inserting what is there changes nothing. An entry is closed only after a flush that covers its index write, so
the open entries are the log from which a crash, or a restarted engine, is made good.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Protocol

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.faults import BackendDown, Fault
from memoryos_server.domain.ports import Acceptance, Entry, IndexedTurn, Queue, Subject, Turn, Turns, Vectors

log = logging.getLogger(__name__)


class Indexer(Protocol):
    """Makes a turn searchable: its terms and vectors."""

    async def index(self, turns: Sequence[Turn]) -> list[IndexedTurn]:
        """The turns with what search needs, in order."""


class Pipeline:
    """Accepts turns and sees to it that every one becomes searchable.

    Args:
        turns: Where acceptance is written.
        queue: The open entries.
        vectors: The searchable side.
        indexer: Makes terms and vectors.
        flush_interval: Seconds between flushes of the searchable side.
        retry_interval: Seconds between attempts to index what could not be.
    """

    _REPLAY_BATCH = 64
    _STOP_SECONDS = 10.0

    def __init__(
        self,
        turns: Turns,
        queue: Queue,
        vectors: Vectors,
        indexer: Indexer,
        *,
        flush_interval: float = 1.0,
        retry_interval: float = 1.0,
    ) -> None:
        self._turns = turns
        self._queue = queue
        self._vectors = vectors
        self._indexer = indexer
        self._flush_interval = flush_interval
        self._retry_interval = retry_interval
        self._unflushed: list[tuple[int, Entry]] = []
        self._pending: dict[str, set[asyncio.Task[None]]] = {}
        self._behind = asyncio.Event()
        self._level = asyncio.Event()
        self._level.set()
        self._replaying = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Pipeline:
        """Replays what a crash left open, then keeps flushing and retrying."""
        try:
            await self._replay()
        except BackendDown:
            self._fall_behind()
        self._tasks = [asyncio.create_task(self._flush_forever()), asyncio.create_task(self._retry_forever())]
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Waits for index writes under way, then flushes and closes what it can."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Bounded, because a store that hangs must not keep the server from stopping: open entries are replayed.
        with contextlib.suppress(BackendDown, TimeoutError):
            async with asyncio.timeout(self._STOP_SECONDS):
                if pending := [task for tasks in self._pending.values() for task in tasks]:
                    await asyncio.wait(pending)
                await self._flush()

    async def accept(self, subject: Subject, turns: Sequence[Turn], audit: AuditEvent | None) -> list[Acceptance]:
        """Keeps turns durably and indexes them; returns when both are done.

        A searchable side that is down does not fail the call: the turns are durable and are indexed once it is back.
        Cancelling after acceptance undoes nothing.

        Raises:
            Exists: An event_id is known with other content.
            BackendDown: The turns could not be kept.
        """
        work = asyncio.create_task(self._accept(subject, turns, audit))
        tasks = self._pending.setdefault(subject.id, set())
        done: asyncio.Task[None] = asyncio.create_task(_settled(work))
        tasks.add(done)
        done.add_done_callback(lambda task: self._forget(subject.id, task))
        return await asyncio.shield(work)

    async def settle(self, subject: Subject, seconds: float) -> None:
        """Waits until the writes of a subject that are under way are searchable, at most `seconds`."""
        if tasks := self._pending.get(subject.id):
            await asyncio.wait(tasks, timeout=seconds)

    def restarted(self) -> None:
        """Says that the searchable side may have lost what was not flushed."""
        self._fall_behind()

    @property
    def behind(self) -> bool:
        """Whether turns that were acknowledged may be missing from the searchable side for now."""
        return not self._level.is_set()

    async def catch_up(self, seconds: float) -> bool:
        """Waits until nothing acknowledged is missing from the searchable side, at most `seconds`; whether that is so."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._level.wait()
        return not self.behind

    def _fall_behind(self) -> None:
        self._level.clear()
        self._behind.set()

    def _forget(self, subject_id: str, task: asyncio.Task[None]) -> None:
        tasks = self._pending.get(subject_id, set())
        tasks.discard(task)
        if not tasks:
            self._pending.pop(subject_id, None)

    async def _accept(self, subject: Subject, turns: Sequence[Turn], audit: AuditEvent | None) -> list[Acceptance]:
        try:
            accepted = await self._turns.accept(subject, turns, audit)
        except BackendDown:
            # The answer may have been lost after the write: then its entry is open and nobody works on it.
            self._behind.set()
            raise
        entries = [
            Entry(a.entry, subject, turn)
            for a, turn in zip(accepted, turns, strict=True)
            if a.entry and not a.duplicate
        ]
        repeated = [a.memory_id for a in accepted if a.duplicate]
        try:
            if entries:
                await self._index(entries)
            if repeated and len(await self._vectors.get(subject, repeated)) < len(repeated):
                await self._replay()  # kept by a call whose answer was lost: searchable, too, when this one returns
        except Fault as fault:
            log.warning("accepted turns wait to be indexed: %s", fault.message)
            self._fall_behind()
        return accepted

    async def _index(self, entries: Sequence[Entry]) -> None:
        indexed = await self._indexer.index([entry.turn for entry in entries])
        by_subject: dict[str, list[int]] = {}
        for at, entry in enumerate(entries):
            by_subject.setdefault(entry.subject.id, []).append(at)
        for places in by_subject.values():
            incarnation = await self._vectors.insert(entries[places[0]].subject, [indexed[at] for at in places])
            self._unflushed += [(incarnation, entries[at]) for at in places]

    async def _replay(self) -> None:
        async with self._replaying:
            waiting = {entry.id for _, entry in self._unflushed}
            batch: list[Entry] = []
            async for entry in self._queue.open_entries():
                if entry.id in waiting:
                    continue
                batch.append(entry)
                if len(batch) >= self._REPLAY_BATCH:
                    await self._index(batch)
                    batch = []
            if batch:
                await self._index(batch)

    async def _flush(self) -> None:
        covered, self._unflushed = self._unflushed, []
        if not covered:
            return
        try:
            incarnation = await self._vectors.flush()
            await self._queue.close([entry for seen, entry in covered if seen == incarnation])
        except BaseException:
            self._unflushed = covered + self._unflushed
            raise
        if any(seen != incarnation for seen, _ in covered):
            # The engine was restarted in between: those writes may be gone, their entries are still open.
            self._fall_behind()

    async def _flush_forever(self) -> None:
        while True:
            await asyncio.sleep(self._flush_interval)
            try:
                await self._flush()
            except Fault as fault:
                log.warning("index writes could not be flushed: %s", fault.message)
            except Exception:
                log.exception("index writes could not be flushed")

    async def _retry_forever(self) -> None:
        while True:
            await self._behind.wait()
            self._behind.clear()
            try:
                self._unflushed = []  # their entries are still open; indexing them again changes nothing
                await self._replay()
                if not self._behind.is_set():
                    self._level.set()
            except Fault as fault:
                log.warning("accepted turns still wait to be indexed: %s", fault.message)
                self._behind.set()
            except Exception:
                log.exception("accepted turns could not be indexed")
                self._behind.set()
            await asyncio.sleep(self._retry_interval)


async def _settled(work: asyncio.Task[list[Acceptance]]) -> None:
    await asyncio.wait([work])
    if not work.cancelled():
        work.exception()  # the caller is told; a caller who left must not leave a warning behind
