"""From an accepted turn or change to what is searchable and known, without ever losing or doubling it.

Acceptance is one durable write; it leaves an open queue entry. Indexing and digesting follow and may be repeated: ids
follow from the event, and writing what is there changes nothing. An entry ends only after a flush that covers its writes,
so the open entries are the log from which a crash, or a restarted engine, is made good.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.faultpoints import reach
from memoryos_server.domain.core.faults import BackendDown, Fault
from memoryos_server.domain.core.level import Level
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.memory.backlog import Backlog
from memoryos_server.domain.memory.changes import Changes, Make
from memoryos_server.domain.memory.counts import Counts, Uncounted
from memoryos_server.domain.memory.fairness import Slots
from memoryos_server.domain.memory.flushing import Flusher
from memoryos_server.domain.memory.indexing import Indexer, Indexing, Words
from memoryos_server.domain.memory.model import Consolidation, Digest
from memoryos_server.domain.memory.others import Others
from memoryos_server.domain.memory.progress import Locks, Progress
from memoryos_server.domain.memory.trouble import is_outage
from memoryos_server.domain.memory.worker import Worker
from memoryos_server.domain.memory.worktools import LEASE_SECONDS, Tools
from memoryos_server.domain.ports import Acceptance, Entry, HeatStore, Queue, Subject, Turn, Turns, Vectors
from memoryos_server.domain.ports.consents import EVERYBODY, Consents

log = logging.getLogger(__name__)

_REPLAY_BATCH = 64
_PARTITIONS_AT_ONCE = 4


class Pipeline:
    """Accepts turns and changes and sees to it that every one comes to its end.

    Attributes:
        level: Whether what was acknowledged as searchable may be missing from the searchable side.

    Args:
        turns: Where acceptance is written.
        queue: The ledger.
        vectors: The searchable side.
        indexer: Makes terms and vectors.
        words: Makes terms alone.
        heat: Where heat is kept.
        digest: Judges turns and takes facts from them; None: every turn is stored as it is.
        consolidation: Makes segments; None: turns stay fresh.
        mode: `sync`: a turn is searchable when its acceptance returns; `async`: it is durable then, searchable soon after.
        flush_interval: Seconds between flushes of the searchable side.
        retry_interval: Seconds between attempts to index what could not be.
        backoff: Seconds before a failed entry is tried again; twice as long each further time.
        lease_seconds: How long a process that died keeps its partitions.
        counts: Is told what was done.
        shared: Whether other processes accept turns into the same stores: what they accepted is looked for, too.
        sweep: Takes turns that another process took back out of derived memory; None where there is no other process.
        backlog: Refuses what there is no room for; None: everything is accepted.
        doubtful: Whether a store seems to hang, or is down: then nobody waits for work under way.
        consents: Who may be remembered: of others, turns that wait end as rejected.
        down: Whether a store is known to be down: then nobody waits until nothing is missing.
        now: The present time.
    """

    _STOP_SECONDS = 10.0

    def __init__(
        self,
        turns: Turns,
        queue: Queue,
        vectors: Vectors,
        indexer: Indexer,
        words: Words,
        heat: HeatStore,
        *,
        digest: Digest | None = None,
        consolidation: Consolidation | None = None,
        mode: str = "sync",
        flush_interval: float = 1.0,
        retry_interval: float = 1.0,
        backoff: float = 0.5,
        lease_seconds: float = LEASE_SECONDS,
        counts: Counts | None = None,
        shared: bool = False,
        sweep: Callable[[Subject, Collection[str]], Awaitable[None]] | None = None,
        backlog: Backlog | None = None,
        doubtful: Callable[[], bool] = lambda: False,
        down: Callable[[], bool] = lambda: False,
        consents: Consents = EVERYBODY,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._turns = turns
        self._queue = queue
        self._vectors = vectors
        self._inline = mode == "sync"
        self._doubtful = doubtful
        self._down = down
        self._backlog = backlog or Backlog(queue)
        self._retry_interval = retry_interval
        self._others = Others(turns, self.written) if shared else None
        self._pending: dict[str, set[asyncio.Task[None]]] = {}
        self.level = Level(down)
        self._behind = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        locks = Locks()
        self._progress = Progress()
        self._indexing = Indexing(vectors, indexer, words, heat, locks, consents)
        self._flusher = Flusher(vectors, flush_interval)
        self._worker = Worker(
            Tools(
                queue=queue,
                indexing=self._indexing,
                flusher=self._flusher,
                locks=locks,
                progress=self._progress,
                digest=digest,
                consolidation=consolidation,
                now=now,
                slots=Slots(_PARTITIONS_AT_ONCE),
                looks=asyncio.Semaphore(_PARTITIONS_AT_ONCE),
                alone=asyncio.Lock(),
                backoff=backoff,
                lease_seconds=lease_seconds,
                consents=consents,
                sweep=sweep,
                counts=counts or Uncounted(),
            )
        )
        self._changes = Changes(
            queue,
            self._indexing,
            locks,
            level=self.level,
            fell_behind=self._fall_behind,
            accepted=self._worker.wake,
            admit=self._backlog.admit,
            give_back=self._backlog.give_back,
        )

    async def __aenter__(self) -> Pipeline:
        """Indexes what a crash left open, then works in the background."""
        try:
            await self._worker.recover()
        except BackendDown:
            self._fall_behind()
        loops = (self._flusher.run(), self._retry_forever(), self._worker.run(), self._backlog.run())
        self._tasks = [asyncio.create_task(loop) for loop in loops]
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Waits for writes under way, and for what can be ended; then gives up its partitions."""
        self._flusher.hurry()
        # Bounded, because a store that hangs must not keep the server from stopping: open entries are taken up again.
        with contextlib.suppress(BackendDown, TimeoutError):
            async with asyncio.timeout(self._STOP_SECONDS):
                if pending := [task for tasks in self._pending.values() for task in tasks]:
                    await asyncio.wait(pending)
                await self._changes.drain()
                if self._others is not None:
                    await self._others.drain()
                await self._worker.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def accept(
        self, subject: Subject, turns: Sequence[Turn], audit: AuditEvent | None
    ) -> tuple[list[Acceptance], bool]:
        """Keeps turns durably; in sync mode they are searchable when this returns.

        A searchable side that is down does not fail the call: the turns are durable and are indexed once it is back.
        Cancelling after acceptance undoes nothing.

        Returns:
            What became of each turn, and whether they wait to be searchable though they should be.

        Raises:
            Exists: An event_id is known with other content.
            Forbidden: reason `consent_withdrawn`: the person may not be remembered.
            BackendDown: The turns could not be kept.
            TooMany: There is no room for them now, and not all were kept before. Nothing was kept.
        """
        # Repeats take no room: they are told what became of them even when there is none.
        if not (limit := self._backlog.full(subject.tenant_id, len(turns))):
            self._backlog.admit(subject.tenant_id, len(turns))
        work = asyncio.create_task(self._accept(subject, turns, audit, limit))
        tasks = self._pending.setdefault(subject.id, set())
        done: asyncio.Task[None] = asyncio.create_task(_settled(work))
        tasks.add(done)
        done.add_done_callback(lambda task: self._forget(subject.id, task))
        return await asyncio.shield(work)

    async def change(self, subject: Subject, make: Make, *, reads: bool = True) -> bool:
        """Makes a change of a subject's records: durable when this returns, and applied unless a store is down.

        The event that the present call drafted for the audit log is written together with the change. Cancelling after
        acceptance undoes nothing.

        Args:
            subject: Whose records.
            make: Reads what it needs and decides on the change, None for none; called again if another change came
                between.
            reads: Whether `make` looks at what is stored. If not, the change is accepted while the searchable side is
                down, too.

        Returns:
            Whether the change waits to be applied.

        Raises:
            BackendDown: The change could not be kept; or it reads, and the searchable side is down or behind.
            Stale: Other changes of the subject kept coming between, or its data was erased.
            TooMany: There is no room for it now. Changes that only remove are always accepted.
        """
        return await self._changes.change(subject, make, reads=reads)

    async def written(self, subject: Subject) -> None:
        """Sees to it that every turn of a subject that was accepted before is on the searchable side, if it can be.

        Raises:
            BackendDown: A store does not answer.
        """
        batch: list[Entry] = []
        failed: set[str] = set()
        async for entry in self._queue.open_entries(subject.partition):
            if entry.turn and entry.subject.id == subject.id and self._indexing.is_unwritten(entry.id):
                batch.append(entry)
            if len(batch) >= _REPLAY_BATCH:
                await self._ensure(batch, failed)
                batch = []
        await self._ensure(batch, failed)

    async def settle(self, subject: Subject, seconds: float) -> None:
        """Waits until what was accepted of a subject is searchable, here or elsewhere, at most `seconds`.

        Of what this process works on, the facts are known then, too. While a store seems to be down there is nothing to
        wait for.
        """
        if self._doubtful():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if tasks := self._pending.get(subject.id):
                    await asyncio.wait(tasks)
                await self._progress.wait(subject.id)
                if self._others is not None:
                    await self._others.written(subject)

    def restarted(self) -> None:
        """Says that the searchable side may have lost what was not flushed."""
        self._indexing.forget_all()
        self._worker.reset()
        if self._others is not None:
            self._others.forget_all()
        self._fall_behind()

    def held(self) -> AbstractAsyncContextManager[None]:
        """Ends no entry while the block lasts; whatever is accepted is done otherwise as ever. See `Flusher.held`."""
        return self._flusher.held()

    def _fall_behind(self) -> None:
        self.level.fall()
        self._behind.set()

    def _forget(self, subject_id: str, task: asyncio.Task[None]) -> None:
        tasks = self._pending.get(subject_id, set())
        tasks.discard(task)
        if not tasks:
            self._pending.pop(subject_id, None)

    async def _accept(
        self, subject: Subject, turns: Sequence[Turn], audit: AuditEvent | None, limit: str
    ) -> tuple[list[Acceptance], bool]:
        reach("accept.before")
        if limit:
            accepted = await self._turns.accept(subject, turns, audit, repeats_only=True)
            if not accepted and turns:
                self._backlog.refuse(limit)
        else:
            try:
                accepted = await self._turns.accept(subject, turns, audit)
            except Fault:
                self._backlog.give_back(subject.tenant_id, len(turns))
                raise
            self._backlog.give_back(subject.tenant_id, sum(a.duplicate for a in accepted))
        reach("accept.after")
        entries = [
            Entry(a.entry, subject, replace(turn, seq=a.seq))
            for a, turn in zip(accepted, turns, strict=True)
            if a.entry and not a.duplicate
        ]
        if not entries and not self._inline:
            return accepted, False
        for entry in entries:
            self._indexing.know(entry.id)
        if self._worker.works_on(subject):
            self._progress.begin(subject.id, [entry.id for entry in entries])
        late = False
        if self._inline:
            late = await self._index(subject, entries, [a.memory_id for a in accepted if a.duplicate])
            if self._others is not None and not late:
                self._others.wrote(subject, [a.seq for a in accepted if not a.duplicate])
        if entries:
            self._worker.wake(subject)
        return accepted, late

    async def _index(self, subject: Subject, entries: Sequence[Entry], repeated: Sequence[str]) -> bool:
        """Makes accepted turns searchable at once; whether that could not be done."""
        if self._down():
            self._fall_behind()
            return True
        try:
            if entries:
                await self._indexing.inline(entries)
            if repeated and len(await self._vectors.get(subject, repeated)) < len(repeated):
                # Kept by a call whose answer was lost: searchable, too, when this one returns.
                await self._replay([subject.partition])
        except Fault as fault:
            log.warning("accepted turns wait to be indexed: %s", fault.message)
            if is_outage(fault):
                self._fall_behind()
            return True
        except Exception:
            # They are durable. The worker tries again, and gives up on what cannot be done.
            log.exception("accepted turns could not be indexed and are left to the worker")
            return True
        return self.level.behind

    async def _replay(self, partitions: Sequence[int]) -> None:
        """Writes every open entry that is not written, in order; one that fails is left to the worker.

        Raises:
            BackendDown: A store does not answer.
        """
        for number in partitions:
            failed: set[str] = set()
            batch: list[Entry] = []
            async for entry in self._queue.open_entries(number):
                if self._indexing.is_unwritten(entry.id) and entry.attempts < 2:
                    batch.append(entry)
                if len(batch) >= _REPLAY_BATCH:
                    await self._ensure(batch, failed)
                    batch = []
            await self._ensure(batch, failed)

    async def _ensure(self, entries: Sequence[Entry], failed: set[str]) -> None:
        try:
            await self._indexing.ensure(entries, quickly=True)
        except Exception as error:
            if is_outage(error):
                raise
            for entry in entries:
                if entry.subject.id in failed:
                    continue
                try:
                    await self._indexing.ensure([entry], quickly=True)
                except Exception as alone:
                    if is_outage(alone):
                        raise
                    failed.add(entry.subject.id)

    async def _retry_forever(self) -> None:
        while True:
            await self._behind.wait()
            self._behind.clear()
            try:
                await self._replay(list(await self._queue.backlog()))
                if not self._behind.is_set():
                    self.level.reach()
            except Fault as fault:
                log.warning("accepted turns still wait to be indexed: %s", fault.message)
                self._behind.set()
            except Exception:
                log.exception("accepted turns could not be indexed")
                self._behind.set()
            await asyncio.sleep(self._retry_interval)


async def _settled(work: asyncio.Task[tuple[list[Acceptance], bool]]) -> None:
    await asyncio.wait([work])
    if not work.cancelled():
        work.exception()  # the caller is told; a caller who left must not leave a warning behind
